"""Two low-rank experts behind a gate: equal experts are one LoRA, a saturated gate picks one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import NotMergeable, WrongSite, from_config, lora, lora_experts, to_config
from tests.adapters.toy_vit import IMAGE, KEY, init_delta, perturbed, toy

SITES = r".*/(qkv|fc1)"


def one_expert(delta: dict, local: bool) -> dict:
    """The LoRA that an expert is."""
    return {
        s: {n: d[f"{n}_global"] + (d[f"{n}_local"] if local else 0) for n in "ab"} for s, d in delta.items()
    }


@pytest.mark.slow
def test_identity_at_the_start_and_rebuilt_from_its_configuration() -> None:
    vit, params = toy()
    adapter = lora_experts(2, 4.0, SITES)
    assert to_config(from_config(to_config(adapter))) == to_config(adapter)
    delta = init_delta(adapter, vit, params)
    site = delta["blocks_0/attn/qkv"]
    assert {name: x.shape for name, x in site.items()} == {
        "a_global": (12, 2),
        "b_global": (2, 36),
        "a_local": (12, 2),
        "b_local": (2, 36),
        "gate": (12, 2),
        "gate_bias": (2,),
    }
    assert site["a_global"].any()
    assert not any(site[name].any() for name in site if name != "a_global")
    np.testing.assert_array_equal(adapter.wrap(vit.apply)(params, delta, IMAGE), vit.apply(params, IMAGE))
    with pytest.raises(NotMergeable):
        adapter.merge(params, delta)


def test_equal_experts_are_one_lora_and_a_saturated_gate_picks_one() -> None:
    vit, params = toy()
    adapter = lora_experts(2, 4.0, SITES)
    delta = perturbed(init_delta(adapter, vit, params))
    plain = jax.jit(lora(2, 4.0, SITES).wrap(vit.apply))
    mixed = jax.jit(adapter.wrap(vit.apply))
    equal = {s: d | {n: jnp.zeros_like(d[n]) for n in ("a_local", "b_local")} for s, d in delta.items()}
    shared, own = (plain(params, one_expert(delta, local), IMAGE) for local in (False, True))
    np.testing.assert_allclose(mixed(params, equal, IMAGE), shared, rtol=1e-4, atol=1e-5)
    assert np.abs(shared - own).max() > 1e-2
    for i, want in enumerate((shared, own)):
        bias = jnp.where(jnp.arange(2) == i, 100.0, 0.0)
        picked = mixed(params, {s: d | {"gate_bias": bias} for s, d in delta.items()}, IMAGE)
        np.testing.assert_allclose(picked, want, rtol=1e-4, atol=1e-5)


def test_convolutions_are_refused() -> None:
    vit, params = toy()
    with pytest.raises(WrongSite, match="no Dense"):
        lora_experts(2, None, "patch").init(KEY, vit.apply, params, IMAGE)
