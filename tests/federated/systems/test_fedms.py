"""FedMS: one LoRA, then two experts; the switch changes nothing, and the local expert stays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import BadFederation, Privacy
from medvfm_jax.federated.algorithms import fedit
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.systems.fedms import activate, fedms, fedms_parts
from tests.federated.systems.tiny import SPEC, N, case, chain_of, leaf_names, rounds

pytestmark = pytest.mark.usefixtures("x64")
SGD = optax.sgd(0.05)
SITE = "image_encoder/blocks_1/attn/qkv"


@pytest.mark.slow
def test_the_first_stage_is_federated_lora() -> None:
    start = case(chain_of(fedms_parts(SPEC, 2)))
    lora = case({"kind": "lora", "rank": 2, "alpha": None, "at": "image_encoder/.*/qkv"})
    factors = {
        site: {"a": arrays["a_global"], "b": arrays["b_global"]}
        for site, arrays in start.delta["experts"].items()
    }
    want = rounds(fedit(gradient_of(lora.loss), SGD), factors)[0].delta
    server, clients, _ = rounds(fedms(gradient_of(start.loss), SGD, global_rounds=2, ramp=1), start.delta)
    for site, arrays in server.delta["experts"].items():
        np.testing.assert_allclose(arrays["a_global"], want[site]["a"], rtol=1e-10)
        np.testing.assert_allclose(arrays["b_global"], want[site]["b"], rtol=1e-10)
        assert not arrays["gate"].any()
        assert arrays["a_local"] is None
    assert not any(np.any(x) for x in jax.tree.leaves(clients.state)), "local experts do not move yet"


@pytest.mark.slow
def test_the_second_stage_trains_local_experts_and_an_averaged_gate() -> None:
    start = case(chain_of(fedms_parts(SPEC, 2)))
    algorithm = fedms(gradient_of(start.loss), SGD, global_rounds=1, ramp=1)
    before = rounds(algorithm, start.delta, 1)
    losses = [float(before[2].loss)]
    after = rounds(algorithm, start.delta, 4, state=before, losses=losses)
    assert losses == sorted(losses, reverse=True)
    old, new = before[0].delta["experts"][SITE], after[0].delta["experts"][SITE]
    np.testing.assert_array_equal(new["a_global"], old["a_global"])
    np.testing.assert_array_equal(new["b_global"], old["b_global"])
    assert np.abs(new["gate"]).max() > 0, "the gate is averaged, and has learnt"
    local = after[1].state["experts"][SITE]["b_local"]
    assert np.abs(np.diff(local, axis=0)).min() > 0
    assert not any("local" in name for name in leaf_names(after[0].delta))


def test_layers_wake_from_the_last_to_the_first_and_the_gate_never_sleeps() -> None:
    names = [f"image_encoder/blocks_{i}/attn/qkv" for i in (0, 2, 10)]
    updates = {n: {"a_global": jnp.ones(2), "b_local": jnp.ones(2), "gate": jnp.ones(2)} for n in names}

    def awake(stage_round: int, ramp: int) -> list[bool]:
        active = activate(updates, jnp.int32(stage_round), ramp)
        assert all(site["gate"].all() for site in active.values())
        chex.assert_trees_all_equal(*[[s[leaf] for s in active.values()] for leaf in ("a_global", "b_local")])
        return [bool(active[n]["a_global"].all()) for n in names]

    assert awake(0, 3) == [False, False, True]
    assert awake(1, 3) == [False, True, True]
    assert awake(2, 3) == awake(9, 3) == awake(0, 1) == [True, True, True]
    assert awake(0, 100) == [False, False, True], "one is always awake"


def test_a_sleeping_layer_is_neither_trained_nor_moved() -> None:
    start = case(chain_of(fedms_parts(SPEC, 2)))
    server, *_ = rounds(fedms(gradient_of(start.loss), SGD, global_rounds=4, ramp=4), start.delta, 2)
    first, last = (f"image_encoder/blocks_{i}/attn/qkv" for i in (0, 1))
    assert not server.delta["experts"][first]["b_global"].any()
    assert server.delta["experts"][last]["b_global"].any()
    assert server.delta["experts"][last]["b_global"].shape[-1] // 3 == N


@pytest.mark.slow
def test_noise_reaches_only_what_is_trained() -> None:
    """Stage 1 with one layer of two awake, then stage 2: the gate alone is shared and moves."""
    start = case(chain_of(fedms_parts(SPEC, 2)))
    private = {"privacy": Privacy(1.0, 0.5, 4.0)}
    algorithm = fedms(gradient_of(start.loss), SGD, global_rounds=1, ramp=2)
    one = rounds(algorithm, start.delta, 1, **private)
    two = rounds(algorithm, start.delta, 1, state=one, **private)
    first, last = (f"image_encoder/blocks_{i}/attn/qkv" for i in (0, 1))
    assert not one[0].delta["experts"][first]["b_global"].any()
    assert one[0].delta["experts"][last]["b_global"].all()
    assert not any(site["gate"].any() for site in one[0].delta["experts"].values())
    for site, arrays in two[0].delta["experts"].items():
        np.testing.assert_array_equal(arrays["b_global"], one[0].delta["experts"][site]["b_global"])
        assert arrays["gate"].all()


def test_bad_options_and_deltas_are_refused() -> None:
    lora = case({"kind": "lora", "rank": 2, "alpha": None, "at": "image_encoder/.*/qkv"})
    with pytest.raises(BadFederation, match="adapter lora_experts"):
        fedms(gradient_of(lora.loss), SGD).init_server(lora.delta)
    with pytest.raises(BadFederation, match="at least 1"):
        fedms(gradient_of(lora.loss), SGD, ramp=0)
