"""A cohort on real adapters: LoRA on a frozen network, int8 on the wire, noise on the sum."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.adapters import lora
from medvfm_jax.federated import Privacy, Shard, algorithms, make_round
from medvfm_jax.federated.codecs import int8
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.lora_aggregation import factors_of
from medvfm_jax.federated.core.records import Tree
from tests.adapters.jaxpr_equations import products_with
from tests.federated.core.test_backends import mesh
from tests.federated.quadratics import KEY, quick_jit

N, STEPS, BATCH, WIDTH = 8, 2, 3, 6
NETWORK = nn.Sequential([nn.Dense(7), nn.gelu, nn.Dense(2)])
INPUTS = jax.random.normal(KEY, (N, STEPS, BATCH, WIDTH))
PARAMS = NETWORK.init(KEY, INPUTS[0, 0])
ADAPTER = lora(2, None, "layers_.*")
ADAPTED = ADAPTER.wrap(NETWORK.apply)
DELTA = ADAPTER.init(KEY, NETWORK.apply, PARAMS, INPUTS[0, 0])


def loss(delta: Tree, batch: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return ((ADAPTED(PARAMS, delta, batch) - batch[:, :2]) ** 2).mean()


def start(**parts: object) -> tuple:
    data = Shard(INPUTS, jnp.ones(N))
    federation = make_round(algorithms.fedit(gradient_of(loss), optax.sgd(0.3)), **parts)
    return federation, *federation.init(DELTA, data), data


@pytest.mark.slow
def test_compressed_private_rounds_on_lora_agree_and_are_traced_once() -> None:
    """int8 rounds up or down at random: float32 rounding may flip a level, so the comparison allows one."""
    outcomes = []
    for parts in ({"chunk": 4}, {"backend": "loop"}, {"backend": "shard_map", "mesh": mesh()}):
        federation, server, clients, data = start(codec=int8(), privacy=Privacy(1.0, 0.1, 7.0), **parts)
        step = quick_jit(federation.round)
        for _ in range(2):
            present = jnp.arange(N) != 5
            server, clients, metrics = step(server, clients, data, present, jnp.full(N, STEPS), KEY)
        assert step._cache_size() <= 1
        outcomes.append(jax.device_get((server.delta, metrics)))
    for other in outcomes[1:]:
        chex.assert_trees_all_close(other[0], outcomes[0][0], atol=2e-3)
    delta, metrics = outcomes[0]
    chex.assert_tree_all_finite(delta)
    assert len(factors_of(delta)) == 2
    assert metrics.participants == 7
    numbers = sum(x.size for x in jax.tree.leaves(DELTA))
    assert metrics.upload_bits == 7 * (8 * numbers + 4 * 64)  # 8 bits each, two floats per leaf
    assert metrics.extra["aggregation_error"] > 0


def test_rounds_learn_and_the_frozen_weights_are_not_copied_per_client() -> None:
    federation, server, clients, data = start()
    masks = jnp.ones(N, bool), jnp.full(N, STEPS)
    step = quick_jit(federation.round)
    losses = []
    for _ in range(30):
        server, clients, metrics = step(server, clients, data, *masks, KEY)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.7 * losses[0]
    chex.assert_shape(metrics.client_loss, (N,))
    assert np.ptp(metrics.client_loss) > 0

    frozen = products_with((WIDTH, 7), federation.round, server, clients, data, *masks, KEY)
    assert frozen
    assert all(not equation.params["dimension_numbers"][1][0] for equation in frozen), (
        "a batched frozen product"
    )
