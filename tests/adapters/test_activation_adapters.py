"""Bottleneck, scale-shift and prompt tokens against their formulas, and where they refuse."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import Array
from jax.scipy.special import erf

from medvfm_jax.adapters import (
    BadAdapterConfig,
    NoSuchSite,
    NotMergeable,
    WrongSite,
    bottleneck,
    channel_spatial,
    context_block,
    from_config,
    hyper_bottleneck,
    prompt_tokens,
    scale_shift,
)
from tests.adapters.toy_sam import BOX, toy_sam
from tests.adapters.toy_sam import IMAGE as SAM_IMAGE
from tests.adapters.toy_vit import IMAGE, KEY, perturbed, toy

X = jax.random.normal(KEY, (5, 8))
NET = nn.Sequential([nn.Dense(8), nn.LayerNorm()])


def params_of(net: nn.Module, x: Array = X) -> dict:
    return net.init(KEY, x)


@pytest.mark.parametrize("where", ["after", "parallel"])
def test_bottleneck_formula(where: str) -> None:
    adapter = bottleneck("layers_0", ratio=0.25, where=where, scale=0.5)
    params = params_of(NET)
    delta = perturbed(adapter.init(KEY, NET.apply, params, X))
    d = delta["layers_0"]
    chex.assert_shape([d["down"], d["up"]], [(8, 2), (2, 8)])
    y = nn.Dense(8).apply({"params": params["params"]["layers_0"]}, X)
    inner = (y if where == "after" else X) @ d["down"] + d["down_bias"]
    y = y + 0.5 * ((0.5 * inner * (1 + erf(inner / 2**0.5))) @ d["up"] + d["up_bias"])
    expected = nn.LayerNorm().apply({"params": params["params"]["layers_1"]}, y)
    chex.assert_trees_all_close(adapter.wrap(NET.apply)(params, delta, X), expected, atol=1e-5)


def test_normalised_bottleneck_ignores_offset_and_gain_of_its_input() -> None:
    """With a frozen module that gives zero, only the normalised branch is left."""
    net, adapter = nn.Sequential([nn.Dense(8)]), bottleneck("layers_0", 2, where="parallel", normalise=True)
    params = jax.tree.map(jnp.zeros_like, params_of(net))
    delta = perturbed(adapter.init(KEY, net.apply, params, X))
    out = adapter.wrap(net.apply)(params, delta, X)
    chex.assert_trees_all_close(adapter.wrap(net.apply)(params, delta, 3 * X + 7), out, atol=1e-4)
    chex.assert_trees_all_close(
        adapter.wrap(net.apply)(params, delta, X + 1000), out, atol=1e-3
    )  # float32 has 6e-5


def test_hyper_bottleneck_formula() -> None:
    """e_1 = relu(norm(W(x) e_0)), twice, with W made from the module's input: y + e_2 up."""
    adapter = hyper_bottleneck("layers_0", width=2, layers=2)
    params = params_of(NET)
    delta = perturbed(adapter.init(KEY, NET.apply, params, X))
    d = delta["layers_0"]
    chex.assert_shape([d["down"], d["make_0"], d["make_bias_1"]], [(8, 2), (8, 4), (4,)])
    y = nn.Dense(8).apply({"params": params["params"]["layers_0"]}, X)
    e = y @ d["down"] + d["down_bias"]
    for i in range(2):
        weights = (X @ d[f"make_{i}"] + d[f"make_bias_{i}"]).reshape(5, 2, 2)
        e = jnp.stack([weights[n] @ e[n] for n in range(5)])
        e = e - e.mean(-1, keepdims=True)
        e = jnp.maximum(e / jnp.sqrt((e**2).mean(-1, keepdims=True) + 1e-5), 0)
    y = y + e @ d["up"] + d["up_bias"]
    expected = nn.LayerNorm().apply({"params": params["params"]["layers_1"]}, y)
    chex.assert_trees_all_close(adapter.wrap(NET.apply)(params, delta, X), expected, atol=1e-4)
    with pytest.raises(NotMergeable, match="made from the prompt"):
        adapter.merge(params, delta)
    with pytest.raises(BadAdapterConfig, match="at least 1"):
        hyper_bottleneck("layers_0", width=0)


def test_channel_spatial_needs_a_map_of_even_sides() -> None:
    with pytest.raises(WrongSite, match=r"even sides, not \(5, 8\)"):
        channel_spatial("layers_0").init(KEY, NET.apply, params_of(NET), X)


def test_med_sa_adapter_has_the_published_size() -> None:
    """Width 768, ratio 0.25: 295,872 parameters each (specs of the release)."""
    net, x = nn.Sequential([nn.Dense(768)]), jax.ShapeDtypeStruct((1, 768), jnp.float32)
    params = jax.eval_shape(net.init, KEY, x)
    delta = jax.eval_shape(lambda: bottleneck("layers_0", ratio=0.25).init(KEY, net.apply, params, x))
    assert sum(a.size for a in jax.tree.leaves(delta)) == 295_872


def test_scale_shift_merges_through_a_norm_and_refuses_without_bias() -> None:
    adapter = scale_shift("layers_.*")
    params = perturbed(params_of(NET))  # biases that are not zero
    delta = perturbed(adapter.init(KEY, NET.apply, params, X))
    out = adapter.wrap(NET.apply)(params, delta, X)
    merged = adapter.merge(params, delta)
    chex.assert_trees_all_close(NET.apply(merged, X), out, atol=1e-5)
    for layer, site in delta.items():  # b (1 + s) + t
        bias = params["params"][layer]["bias"] * (1 + site["scale"]) + site["shift"]
        chex.assert_trees_all_close(merged["params"][layer]["bias"], bias)
    bare = nn.Sequential([nn.Dense(8, use_bias=False)])
    params = params_of(bare)
    with pytest.raises(NotMergeable, match=r"layers_0 \(needs a kernel or norm scale with a bias"):
        adapter.merge(params, adapter.init(KEY, bare.apply, params, X))


def test_prompt_tokens_are_in_front_of_the_block_and_gone_behind_it() -> None:
    class Sum(nn.Module):  # a block that treats tokens as a set
        @nn.compact
        def __call__(self, x: Array) -> Array:
            return x + x.sum(0) * self.param("gain", nn.initializers.ones, ())

    net = nn.Sequential([Sum()])
    params, adapter = params_of(net), prompt_tokens(3, "layers_0")
    delta = perturbed(adapter.init(KEY, net.apply, params, X))
    expected = X + X.sum(0) + delta["layers_0"]["tokens"].sum(0)
    chex.assert_trees_all_close(adapter.wrap(net.apply)(params, delta, X), expected, atol=1e-5)


class Rows(nn.Module):  # a block that treats tokens as a set, and changes them
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x + jnp.tanh(nn.Dense(x.shape[-1], name="mix")(x.mean(0) + x))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(3):
            x = Rows(name=f"blocks_{i}")(x)
        return nn.LayerNorm(name="norm")(x)


def test_tokens_of_the_first_block_pass_through_all_and_are_gone_before_the_norm() -> None:
    net = Encoder()
    params, adapter = params_of(net), prompt_tokens(3, "blocks_0", until="norm")
    delta = adapter.init(KEY, net.apply, params, X)
    assert jax.tree.map(jnp.shape, delta) == {"blocks_0": {"tokens": (3, X.shape[-1])}}
    both = jnp.concatenate([delta["blocks_0"]["tokens"], X])  # by hand
    expected = net.apply(params, both)[3:]
    out = adapter.wrap(net.apply)(params, delta, X)
    chex.assert_trees_all_close(out, expected, atol=1e-5)
    gone = prompt_tokens(3, "blocks_0").wrap(net.apply)(params, delta, X)  # the second block still sees them
    assert float(jnp.abs(out - gone).max()) > 1e-4
    with pytest.raises(NotMergeable, match="further inputs of the block"):
        adapter.merge(params, delta)
    assert from_config(adapter.config).config == adapter.config


def test_tokens_that_pass_through_blocks_begin_and_end_at_one_module() -> None:
    net = Encoder()
    params = params_of(net)
    for adapter, error, words in (
        (prompt_tokens(3, r"blocks_\d", until="norm"), WrongSite, "matches 3 modules"),
        (prompt_tokens(3, "blocks_0", until="no.m"), NoSuchSite, "matches no module"),
    ):
        with pytest.raises(error, match=words):
            adapter.init(KEY, net.apply, params, X)
    vit, params = toy()
    with pytest.raises(WrongSite, match="where its tokens are to be taken off, gets"):
        prompt_tokens(3, "blocks_0", until="blocks_1/fc2").init(KEY, vit.apply, params, IMAGE)


class Masked(nn.Module):
    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        return nn.MultiHeadDotProductAttention(2, name="attn")(x, mask=mask)


class Outer(nn.Module):
    masked: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Masked(name="block")(x, mask=jnp.ones((5, 5), bool) if self.masked else None)


def test_prompt_tokens_refuse_grids_masks_and_other_shapes() -> None:
    model, params = toy_sam()
    with pytest.raises(WrongSite, match=r"works on \(4, 4, 8\), not on \(tokens, d\)"):
        prompt_tokens(2, r"image_encoder/blocks_\d").init(KEY, model.apply, params, SAM_IMAGE, BOX)
    net = Outer(masked=True)
    params = jax.eval_shape(net.init, KEY, X)
    with pytest.raises(WrongSite, match=r"masks or positions of shape \[\(5, 5\)\]"):
        prompt_tokens(2, "block").init(KEY, net.apply, params, X)
    prompt_tokens(2, "block").init(KEY, Outer(masked=False).apply, params, X)
    vit, params = toy()
    with pytest.raises(WrongSite, match=r"turns \(4, 12\) into \(4, 24\)"):
        prompt_tokens(2, ".*/fc1").init(KEY, vit.apply, params, IMAGE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bottleneck("x"), "either width or ratio"),
        (lambda: bottleneck("x", 2, 0.5), "either width or ratio"),
        (lambda: bottleneck("x", 2, where="before"), "'after' or 'parallel'"),
        (lambda: scale_shift("x", "around"), "'before' or 'after'"),
        (lambda: prompt_tokens(0, "x"), "at least 1"),
        (lambda: context_block("asp", "x"), "the nearest is 'aspp'"),
        (lambda: context_block("aspp", "x", 0), "at least 1"),
    ],
)
def test_bad_options_are_refused_at_once(make, message: str) -> None:
    with pytest.raises(BadAdapterConfig, match=message):
        make()
