"""Context blocks after a module: the identity that can be left, gates, isolation, refusals."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import Array

from medvfm_jax.adapters import WrongSite, chain, context, context_block, lora
from medvfm_jax.adapters.context_blocks import BLOCKS
from tests.adapters.toy_vit import IMAGE, KEY, toy

NET = nn.Sequential([nn.Dense(3), nn.Dense(3)])


class Ungated(nn.Module):
    """A block that is not zero at start."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.gelu(nn.Dense(x.shape[-1], name="inner")(x))


@pytest.mark.parametrize("name", ["aspp", "ungated"])
def test_the_identity_at_start_has_a_gradient_that_leaves_it(name: str) -> None:
    """What is zero must have a gradient; two zeros in a row never would."""
    params = NET.init(KEY, IMAGE)
    adapter = context_block("aspp", "layers_0", width=4) if name == "aspp" else context(Ungated, "layers_0")

    @jax.jit
    def run(x: Array) -> tuple:
        adapted = adapter.wrap(NET.apply)
        delta = adapter.init(KEY, NET.apply, params, x)
        grads = jax.grad(lambda d: (adapted(params, d, x) ** 2).sum())(delta)
        return delta, adapted(params, delta, x), NET.apply(params, x), grads

    delta, out, base, grads = run(IMAGE)
    chex.assert_trees_all_close(out, base, atol=1e-6)
    zero = "last/proj/kernel" if name == "aspp" else "gate"
    assert not delta["layers_0"][zero].any()
    assert jnp.abs(grads["layers_0"][zero]).max() > 1e-3
    assert ("gate" in delta["layers_0"]) == (name == "ungated")


@pytest.mark.slow
def test_every_named_block_fits_after_an_encoder() -> None:
    net = nn.Sequential([nn.Dense(8)])
    x = jax.ShapeDtypeStruct((16, 16, 3), jnp.float32)
    params = jax.eval_shape(net.init, KEY, x)
    for name in BLOCKS:
        adapter = context_block(name, "layers_0", width=8)
        delta = jax.eval_shape(lambda key, a=adapter: a.init(key, net.apply, params, x), KEY)
        assert delta["layers_0"]["last/proj/kernel"].shape == (8, 8)
        assert jax.eval_shape(adapter.wrap(net.apply), params, delta, x).shape == (16, 16, 8)


def test_a_block_of_ones_own_is_gated_and_seen_by_no_other_adapter() -> None:
    """Its inner module is called "head", like a site of the model: it must stay untouched and untapped."""

    class Mine(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            return nn.Dense(x.shape[-1], name="head")(x)

    vit, params = toy()
    outer = lora(2, 2.0, "head")
    both = chain(context=context(Mine, "conv3x3"), lora=outer)
    other = chain(context=context(Affine, "conv3x3"), lora=outer)  # the same function, no module "head"

    @jax.jit
    def run(key: Array) -> tuple:
        delta = both.init(key, vit.apply, params, IMAGE)
        at_start = both.wrap(vit.apply)(params, delta, IMAGE)
        block = {**delta["context"]["conv3x3"], "gate": jnp.ones(12)}
        low_rank = {"head": {**delta["lora"]["head"], "b": jnp.ones((2, 4))}}
        opened = {"context": {"conv3x3": block}, "lora": low_rank}
        same = {"k": block["head/kernel"], "b": block["head/bias"], "gate": block["gate"]}
        renamed = {"context": {"conv3x3": same}, "lora": low_rank}
        outs = both.wrap(vit.apply)(params, opened, IMAGE), other.wrap(vit.apply)(params, renamed, IMAGE)
        return delta, at_start, vit.apply(params, IMAGE), *outs

    delta, at_start, base, opened, renamed = run(KEY)
    assert set(delta["context"]["conv3x3"]) == {"head/kernel", "head/bias", "gate"}
    assert set(delta["lora"]) == {"head"}
    chex.assert_trees_all_close(at_start, base, atol=1e-6)
    chex.assert_trees_all_close(opened, renamed, atol=1e-5)
    assert jnp.abs(opened - base).max() > 1e-2


class Affine(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        k = self.param("k", nn.initializers.zeros, (12, 12))
        return x @ k + self.param("b", nn.initializers.zeros, (12,))


def test_context_refuses_tokens_and_blocks_that_change_the_shape() -> None:
    vit, params = toy()
    with pytest.raises(WrongSite, match=r"not \(h, w, channels\)"):
        context_block("aspp", "blocks_0/attn").init(KEY, vit.apply, params, IMAGE)
    with pytest.raises(WrongSite, match=r"Dense changes \(2, 2, 12\)"):
        context(lambda: nn.Dense(3), "conv3x3").init(KEY, vit.apply, params, IMAGE)
    with pytest.raises(WrongSite, match=r"BatchNorm keeps \['batch_stats', 'params'\]"):
        context(lambda: nn.BatchNorm(use_running_average=True), "conv3x3").init(KEY, vit.apply, params, IMAGE)
