"""FedDPA: mixing has its two ends, the global adapter is FedIT's, the local one never leaves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from medvfm_jax.federated import BadFederation, Privacy
from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.systems.feddpa import (
    GLOBAL,
    LOCAL,
    feddpa_f,
    feddpa_parts,
    feddpa_t,
    instance_weight,
    mix,
)
from tests.federated.systems.tiny import (
    DIM,
    SPEC,
    STEPS,
    TOKENS,
    case,
    chain_of,
    data,
    leaf_names,
    rounds,
    tiny,
)

pytestmark = pytest.mark.usefixtures("x64")
RATE = 0.05
SGD = optax.sgd(RATE)


def moved(delta: dict) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + rng.normal(size=x.shape), delta)


@pytest.mark.slow
def test_weight_zero_is_the_global_model_and_one_the_local_model() -> None:
    start = case(chain_of(feddpa_parts(SPEC, 2)))
    model, params = tiny()
    adapted, delta = start.adapter.wrap(model.encode), moved(start.delta)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(TOKENS, DIM)))
    silent = jax.tree.map(jnp.zeros_like, delta[LOCAL])
    global_model, local_model = (adapted(params, d, x) for d in ({**delta, LOCAL: silent}, delta))
    np.testing.assert_allclose(adapted(params, mix(delta, 0.0), x), global_model, rtol=1e-12)
    np.testing.assert_allclose(adapted(params, mix(delta, 1.0), x), local_model, rtol=1e-12)
    assert np.abs(global_model - local_model).max() > 1e-2
    each = jax.vmap(lambda w: adapted(params, mix(delta, w), x))(jnp.asarray([0.0, 0.3, 1.0]))
    np.testing.assert_allclose(each[1], adapted(params, mix(delta, 0.3), x), rtol=1e-12)


def test_one_linear_site_is_mixed_convexly() -> None:
    """The product of a site is (1 - w) global + w local."""
    delta = moved(case(chain_of(feddpa_parts(SPEC, 2))).delta)
    site = "image_encoder/blocks_0/attn/qkv"

    def product(d: dict) -> np.ndarray:
        return sum(d[part][site]["a_q"] @ d[part][site]["b_q"] for part in (GLOBAL, LOCAL))

    want = 0.7 * product(mix(delta, 0.0)) + 0.3 * product(mix(delta, 1.0))
    np.testing.assert_allclose(product(mix(delta, 0.3)), want, rtol=1e-12)


def test_instances_like_the_training_images_get_the_local_adapter() -> None:
    one, two = jnp.eye(3)[0], jnp.eye(3)[1]
    assert float(instance_weight(5 * one, jnp.stack([one, 2 * one]))) == pytest.approx(0.5)
    assert float(instance_weight(one, jnp.stack([one, two]), scale=1.0)) == pytest.approx(0.5)
    assert float(instance_weight(one, jnp.stack([one, two]), scale=0.5)) == pytest.approx(0.25)
    assert float(instance_weight(-one, one[None])) == 0


@pytest.mark.slow
def test_the_global_adapter_is_that_of_fedavg_in_both_variants() -> None:
    start = case(chain_of(feddpa_parts(SPEC, 2)))
    silent = jax.tree.map(jnp.zeros_like, start.delta[LOCAL])
    plain = fedavg(gradient_of(lambda d, b, k: start.loss({**d, LOCAL: silent}, b, k)), SGD)
    want = rounds(plain, {GLOBAL: start.delta[GLOBAL]})
    for algorithm, local_moves in (
        (feddpa_t(gradient_of(start.loss), SGD), True),
        (feddpa_f(gradient_of(start.loss), SGD, global_rounds=2), False),
    ):
        server, clients, metrics = rounds(algorithm, start.delta)
        chex.assert_trees_all_close(server.delta[GLOBAL], want[0].delta[GLOBAL], rtol=1e-12)
        assert not any(LOCAL in name for name in leaf_names(server.delta))
        assert metrics.upload_bits == want[2].upload_bits
        assert np.any(clients.state[LOCAL]["image_encoder/blocks_0/attn/qkv"]["b_q"]) == local_moves


@pytest.mark.slow
def test_a_local_adapter_learns_in_the_half_half_mix_with_the_global_one_as_received() -> None:
    """In the second round of FedDPA-T and of FedDPA-F after one global round, with the same starting point."""
    start = case(chain_of(feddpa_parts(SPEC, 2)))
    for algorithm in (
        feddpa_t(gradient_of(start.loss), SGD),
        feddpa_f(gradient_of(start.loss), SGD, global_rounds=1),
    ):
        first = rounds(algorithm, start.delta, 1)
        chex.assert_trees_all_equal(
            first[1].state[LOCAL], jax.tree.map(lambda x: np.stack([x] * 4), start.delta[LOCAL])
        )
        second = rounds(algorithm, start.delta, 1, state=first)
        shard, own = data(), start.delta[LOCAL]
        for k in range(STEPS):
            batch = jax.tree.map(lambda x: x[1, k], shard.batches)  # noqa: B023, used at once

            def loss(own: dict) -> Array:
                mixed = mix({GLOBAL: first[0].delta[GLOBAL], LOCAL: own}, 0.5)  # noqa: B023
                return start.loss(mixed, batch, None)  # noqa: B023

            own = jax.tree.map(lambda d, g: d - RATE * g, own, jax.jit(jax.grad(loss))(own))
        found = jax.tree.map(lambda x: x[1], second[1].state[LOCAL])
        chex.assert_trees_all_close(found, own, rtol=1e-9, atol=1e-12)


def test_the_second_phase_trains_local_adapters_and_sends_nothing() -> None:
    start = case(chain_of(feddpa_parts(SPEC, 2)))
    algorithm = feddpa_f(gradient_of(start.loss), SGD, global_rounds=1)
    before = rounds(algorithm, start.delta, 1)
    losses: list[float] = []
    present = np.arange(4) != 0
    after = rounds(algorithm, start.delta, 3, present, state=before, losses=losses)
    chex.assert_trees_all_equal(after[0].delta, before[0].delta)
    assert after[2].upload_norm == 0
    assert losses == sorted(losses, reverse=True)
    moved_b = after[1].state[LOCAL]["image_encoder/blocks_1/attn/qkv"]["b_v"]
    assert moved_b.any((1, 2)).tolist() == present.tolist()
    assert np.abs(moved_b[1] - moved_b[2]).max() > 1e-6, "local adapters are all the same"


@pytest.mark.slow
def test_noise_does_not_move_the_global_adapter_once_it_is_final() -> None:
    start = case(chain_of(feddpa_parts(SPEC, 2)))
    private = {"privacy": Privacy(1.0, 0.5, 4.0)}
    algorithm = feddpa_f(gradient_of(start.loss), SGD, global_rounds=1)
    before = rounds(algorithm, start.delta, 1, **private)
    after = rounds(algorithm, start.delta, 1, state=before, **private)
    assert np.abs(before[0].delta[GLOBAL]["image_encoder/blocks_0/attn/qkv"]["b_q"]).min() > 0, "no noise"
    chex.assert_trees_all_equal(after[0].delta, before[0].delta)


def test_bad_options_and_deltas_are_refused() -> None:
    start = case(chain_of(feddpa_parts(SPEC, 2)))
    with pytest.raises(BadFederation, match="global_rounds must be at least 1"):
        feddpa_f(gradient_of(start.loss), SGD, global_rounds=0)
    with pytest.raises(BadFederation, match="parts 'global_lora' and 'local_lora'"):
        feddpa_t(gradient_of(start.loss), SGD).init_server({GLOBAL: start.delta[GLOBAL]})
