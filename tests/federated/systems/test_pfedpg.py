"""pFedPG: starts as FedAvg of the prompts, then gives every client its own; heads never leave."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import BadFederation, Shard, make_round, name_excluded
from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.core.client_models import client_models, model_of
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Tree
from medvfm_jax.federated.systems.pfedpg import generate, init_generator, pfedpg
from tests.federated.cases import cheap_key
from tests.federated.quadratics import quick_jit

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
N, STEPS, TOKENS, DIM = 3, 2, 2, 4
TARGETS = RNG.normal(size=(N, TOKENS, DIM))
START = {
    "prompts": {"block": {"tokens": RNG.normal(size=(TOKENS, DIM))}},
    "head": {"w": np.zeros(())},
}
SGD = optax.sgd(0.2)


def loss(delta: Tree, target: jax.Array, key: jax.Array) -> jax.Array:
    """Prompts want a client's target; the head wants the sum of the target."""
    del key
    tokens = delta["prompts"]["block"]["tokens"]
    return ((tokens - target) ** 2).sum() + (delta["head"]["w"] - target.sum()) ** 2


def run(algorithm: Algorithm, count: int) -> tuple:
    shard = Shard(jnp.broadcast_to(TARGETS[:, None], (N, STEPS, TOKENS, DIM)), jnp.asarray([1.0, 2.0, 3.0]))
    federation = make_round(algorithm)
    state = federation.init(jax.tree.map(jnp.asarray, START), shard)
    step = quick_jit(federation.round)
    for _ in range(count):
        state = step(*state[:2], shard, jnp.ones(N, bool), jnp.full(N, STEPS), cheap_key(0))
    return jax.device_get(state)


def test_the_first_round_moves_the_base_as_fedavg_would() -> None:
    """All prompts are the base at first, and the base's share of the derivative is the identity."""
    server, clients, metrics = run(pfedpg(gradient_of(loss), SGD, N, width=5), 1)
    prompts_only = fedavg(gradient_of(lambda d, b, k: loss({**d, "head": START["head"]}, b, k)), SGD)
    want, *_ = run(prompts_only, 1)
    got = server.delta["prompts"]["block"]["tokens"]
    np.testing.assert_allclose(got, want.delta["prompts"]["block"]["tokens"], rtol=1e-12)
    assert server.delta["head"]["w"] is None
    assert metrics.upload_bits == metrics.download_bits == N * TOKENS * DIM * 64
    wanted = TARGETS.sum((1, 2))
    np.testing.assert_allclose(clients.state.delta["head"]["w"], wanted * (1 - 0.6**STEPS), rtol=1e-12)
    models = client_models(pfedpg(gradient_of(loss), SGD, N, width=5), START, server, clients.state)
    for client in range(N):  # predicts with what it trained, and whoever took no part with the base
        trained = jax.tree.map(lambda x: x[client], clients.state.delta)  # noqa: B023, used at once
        jax.tree.map(np.testing.assert_array_equal, model_of(models, client), trained)
    np.testing.assert_array_equal(model_of(models, None)["prompts"]["block"]["tokens"], got)
    assert model_of(models, None)["head"]["w"] == START["head"]["w"]


def test_the_generator_comes_nearer_to_every_client_than_any_single_prompt() -> None:
    """The best single prompt is the weighted mean of the targets; generated prompts leave it behind."""
    server, _, _ = run(pfedpg(gradient_of(loss), SGD, N, width=8, server_optimizer=optax.sgd(0.3)), 150)
    share = np.array([1.0, 2.0, 3.0]) / 6
    single = np.tensordot(share, TARGETS, 1)
    made = np.stack(
        [
            generate(server.delta, server.state.generator, jnp.int32(n))["prompts"]["block"]["tokens"]
            for n in range(N)
        ]
    )
    own, common = ((made - TARGETS) ** 2).sum((1, 2)), ((single - TARGETS) ** 2).sum((1, 2))
    assert (share * own).sum() < 0.1 * (share * common).sum()


def test_a_client_without_a_descriptor_is_excluded_and_named() -> None:
    _, _, metrics = run(pfedpg(gradient_of(loss), SGD, 2, width=5), 1)
    assert name_excluded(metrics) == ["2"]
    assert int(metrics.participants) == 2


def test_prompts_that_are_no_tokens_and_bad_options_are_refused() -> None:
    with pytest.raises(BadFederation, match="tokens, d"):
        init_generator(jax.random.key(0), {"bias": jnp.zeros(3)}, 2, 4, 2)
    with pytest.raises(BadFederation, match="at least 1, not 0, 64, 4"):
        pfedpg(gradient_of(loss), SGD, 0)
