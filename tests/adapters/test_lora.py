"""LoRA: slices against the formula by hand, convolutions, scale, and the cost it must not have."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig, WrongSite, adapt_model, chain, lora
from medvfm_jax.models.catalog import build
from tests.adapters.jaxpr_equations import products_with, shapes_in
from tests.adapters.toy_vit import IMAGE, KEY, perturbed, toy

DENSE = nn.Sequential([nn.Dense(48)])
TOKENS = jax.random.normal(KEY, (3, 5, 24))


def dense_params() -> dict:
    return DENSE.init(KEY, TOKENS)


@pytest.mark.parametrize("layout", ["fused", "head_major"])
def test_slices_change_only_q_and_v_where_the_layout_says(layout: str) -> None:
    """Columns by hand: fused [q|k|v] of 16 each; head-major 4 heads of [q4|k4|v4]."""
    params, adapter = dense_params(), lora(2, None, "layers_0", slices="qv", layout=layout, head_dim=4)
    delta = perturbed(adapter.init(KEY, DENSE.apply, params, TOKENS))
    site = delta["layers_0"]
    chex.assert_shape([site["a_q"], site["a_v"]], (24, 2))
    chex.assert_shape([site["b_q"], site["b_v"]], (2, 16))
    change = np.asarray(adapter.wrap(DENSE.apply)(params, delta, TOKENS) - DENSE.apply(params, TOKENS))
    which = np.arange(48) // 16 if layout == "fused" else np.arange(48) // 4 % 3
    for number, name in ((0, "q"), (2, "v")):
        expected = TOKENS @ site[f"a_{name}"] @ site[f"b_{name}"]  # scale 1
        np.testing.assert_allclose(change[..., which == number], expected, atol=1e-5)
    np.testing.assert_array_equal(change[..., which == 1], 0)
    merged = adapter.merge(params, delta)["params"]["layers_0"]["kernel"]
    np.testing.assert_array_equal(
        np.asarray(merged - params["params"]["layers_0"]["kernel"])[:, which == 1], 0
    )


@pytest.mark.parametrize(
    ("options", "scale"),
    [({"alpha": None}, 1.0), ({"alpha": 8.0}, 2.0), ({"alpha": 8.0, "rank_stabilised": True}, 4.0)],
)
def test_scale_conventions(options: dict, scale: float) -> None:
    params, adapter = dense_params(), lora(rank=4, at="layers_0", **options)
    delta = perturbed(adapter.init(KEY, DENSE.apply, params, TOKENS))
    site, kernel = delta["layers_0"], params["params"]["layers_0"]["kernel"]
    merged = adapter.merge(params, delta)["params"]["layers_0"]["kernel"]
    chex.assert_trees_all_close(merged, kernel + scale * site["a"] @ site["b"], atol=1e-5)


def test_a_starts_as_in_pytorch_and_b_at_zero() -> None:
    params = dense_params()
    site = lora(64, None, "layers_0").init(KEY, DENSE.apply, params, TOKENS)["layers_0"]
    bound = 1 / np.sqrt(24)
    assert bound * 0.95 < float(jnp.abs(site["a"]).max()) <= bound
    np.testing.assert_allclose(site["a"].std(), bound / np.sqrt(3), rtol=0.05)
    assert not site["b"].any()


CONVOLUTIONS = {
    "patch": nn.Conv(5, (4, 4), 4, "VALID"),
    "patch_same": nn.Conv(5, (2, 4), (2, 4)),
    "padded_patch": nn.Conv(5, (4, 4), 4, padding=4),
    "three_by_three": nn.Conv(5, (3, 3), padding=1),
    "strided": nn.Conv(5, (3, 3), 2, padding=((1, 1), (1, 1))),
    "dilated": nn.Conv(5, (3, 3), kernel_dilation=2),
    "strided_pointwise": nn.Conv(5, (1, 1), 2),
    "one_axis": nn.Conv(5, (1,)),
    "transposed": nn.ConvTranspose(5, (2, 2), (2, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_their_merged_kernel(name: str) -> None:
    net, adapter = nn.Sequential([CONVOLUTIONS[name]]), lora(2, 4.0, "layers_0")

    @jax.jit
    def both(key: jax.Array, x: jax.Array) -> tuple:
        params = net.init(key, x)
        delta = adapter.init(key, net.apply, params, x)
        delta = jax.tree.map(lambda d: d + 0.5, delta)
        out = adapter.wrap(net.apply)(params, delta, x)
        return out, net.apply(adapter.merge(params, delta), x), net.apply(params, x)

    adapted, merged, base = both(KEY, IMAGE)
    chex.assert_trees_all_close(adapted, merged, rtol=1e-5, atol=1e-4)
    assert jnp.abs(adapted - base).max() > 0.1


def test_patch_embedding_is_multiplied_not_convolved_under_vmap() -> None:
    """A convolution with one kernel per client would be a grouped one."""
    net, adapter = nn.Sequential([CONVOLUTIONS["patch"]]), lora(2, 4.0, "layers_0")
    params = net.init(KEY, IMAGE)
    deltas = jax.vmap(lambda k: adapter.init(k, net.apply, params, IMAGE))(jax.random.split(KEY, 7))
    jaxpr = str(jax.make_jaxpr(jax.vmap(adapter.wrap(net.apply), (None, 0, None)))(params, deltas, IMAGE))
    assert jaxpr.count("conv_general_dilated[") == 1
    assert "feature_group_count=7" not in jaxpr


@pytest.mark.parametrize("slices", [None, "qv"])
def test_the_merged_weight_is_never_built(slices: str | None) -> None:
    """No intermediate of the kernel's shape in the forward, even under vmap over deltas."""
    params, adapter = dense_params(), lora(2, 4.0, "layers_0", slices=slices, layout="fused")
    deltas = jax.vmap(lambda k: adapter.init(k, DENSE.apply, params, TOKENS))(jax.random.split(KEY, 7))
    shapes = shapes_in(jax.vmap(adapter.wrap(DENSE.apply), (None, 0, None)), params, deltas, TOKENS)
    assert not shapes & {(24, 48), (7, 24, 48), (48, 24), (7, 48, 24)}


@pytest.mark.parametrize("slices", [None, "qv"])
def test_the_frozen_product_stays_one_unbatched_gemm(slices: str | None) -> None:
    """Gradients of 7 deltas on 7 batches: the kernel enters un-batched and never gets a gradient itself."""
    params, adapter = dense_params(), lora(2, 4.0, "layers_0", slices=slices, layout="fused")
    deltas = jax.vmap(lambda k: adapter.init(k, DENSE.apply, params, TOKENS))(jax.random.split(KEY, 7))
    xs = jnp.stack([TOKENS] * 7)

    def loss(delta: dict, x: jax.Array) -> jax.Array:
        return (adapter.wrap(DENSE.apply)(params, delta, x) ** 2).sum()

    step = jax.vmap(jax.value_and_grad(loss))
    frozen = products_with((24, 48), step, deltas, xs)
    assert len(frozen) == 1  # x @ kernel, once for all clients; x needs no gradient here
    ((_, _), (batch_left, batch_right)) = frozen[0].params["dimension_numbers"]
    assert (batch_left, batch_right) == ((), ())
    assert frozen[0].outvars[0].aval.shape == (7, 3, 5, 48)
    assert not shapes_in(step, deltas, xs) & {(24, 48), (7, 24, 48), (7, 48, 24)}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (lora(2, 4.0, "norm"), "LayerNorm is no Dense"),
        (
            lora(2, 4.0, "head", slices="qv", layout="fused"),
            r"'qv' need a Dense with a multiple of 3 outputs.*\(12, 4\)",
        ),
        (lora(2, 4.0, ".*/qkv", slices="q", layout="head_major", head_dim=5), "head_dim 5 need"),
        (lora(2, 4.0, "pointwise", slices="q", layout="fused"), "need a Dense"),
    ],
)
def test_modules_it_cannot_adapt_are_named(adapter, message: str) -> None:
    vit, params = toy()
    with pytest.raises(WrongSite, match=message):
        adapter.init(KEY, vit.apply, params, IMAGE)


def test_grouped_convolutions_are_refused() -> None:
    net, x = nn.Sequential([nn.Conv(4, (3, 3), feature_group_count=4)]), jnp.ones((8, 8, 4))
    with pytest.raises(WrongSite, match="grouped"):
        lora(2, 4.0, "layers_0").init(KEY, net.apply, net.init(KEY, x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"slices": "qx"}, "letters q, k, v"),
        ({"slices": "qq"}, "letters q, k, v"),
        ({"slices": "q", "layout": "head_major"}, "needs head_dim"),
        ({"slices": "q", "layout": "interleaved"}, "'fused' or 'head_major'"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict, message: str) -> None:
    with pytest.raises(BadAdapterConfig, match=message):
        lora(**({"rank": 2, "alpha": None, "at": "x"} | options))


@pytest.mark.parametrize(("name", "expected"), [("lite-tiny-test", "head_major"), ("sam-tiny-test", "fused")])
def test_a_model_says_where_its_queries_are(name: str, expected: str) -> None:
    """Hand-written LoRA needs neither layout nor head_dim; alone, or in a chain."""
    model = build(name)
    asked = lora(2, None, r"image_encoder/(.*/)?attn/qkv", slices="qv")
    head_dim = model.spec.head_dim if expected == "head_major" else None
    given = lora(2, None, r"image_encoder/(.*/)?attn/qkv", slices="qv", layout=expected, head_dim=head_dim)
    found = adapt_model(asked, model).adapter
    assert found.config == given.config
    assert adapt_model(chain(low_rank=asked), model).adapter.config["parts"]["low_rank"] == given.config
    params = jax.eval_shape(model.init, KEY)
    assert jax.eval_shape(adapt_model(asked, model).init, KEY, params) == jax.eval_shape(
        adapt_model(given, model).init, KEY, params
    )


def test_without_a_model_the_layout_is_missing_and_not_guessed() -> None:
    vit, params = toy()
    with pytest.raises(BadAdapterConfig, match="use adapt_model"):
        lora(2, 4.0, ".*/qkv", slices="q").init(KEY, vit.apply, params, IMAGE)
