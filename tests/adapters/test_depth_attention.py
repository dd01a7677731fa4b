"""Attention among the slices of a slab: by hand on one module, and as part of SD-Trans on models of the catalog."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from medvfm_jax import systems, weights
from medvfm_jax.adapters import BadAdapterConfig, WrongSite, adapt_model, from_config
from medvfm_jax.adapters.depth_attention import depth_attention
from medvfm_jax.mesh_axes import SLICES
from medvfm_jax.models.transforms import transform
from tests.adapters.toy_vit import perturbed

HEADS, HEAD_DIM, DEPTH = 2, 3, 4
WIDTH = HEADS * HEAD_DIM
KEY = jax.random.key(0)


class Attention(nn.Module):
    """Parameters of an attention that ignores everything but its own token."""

    @nn.compact
    def __call__(self, x):
        v = nn.Dense(3 * WIDTH, name="qkv")(x)[..., -WIDTH:]
        return nn.Dense(WIDTH, name="proj")(v)


class Root(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Attention(name="attn")(x)


def by_hand(params, delta, x, layout):
    """Every position (h, w) over the slices of x (D, h, w, c), head by head, in numpy."""
    layers, site = jax.tree.map(np.asarray, (params["params"]["attn"], delta["attn"]))
    order = "s h w (three n d)" if layout == "fused" else "s h w (n three d)"
    q, k, v = rearrange(
        x @ layers["qkv"]["kernel"] + layers["qkv"]["bias"],
        f"{order} -> three s h w n d",
        three=3,
        d=HEAD_DIM,
    )
    out = np.zeros_like(v)
    for i, j, n in np.ndindex(*v.shape[1:4]):
        logits = q[:, i, j, n] @ k[:, i, j, n].T / np.sqrt(HEAD_DIM)
        weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        out[:, i, j, n] = weight @ v[:, i, j, n]
    seen = rearrange(out, "s h w n d -> s h w (n d)") @ layers["proj"]["kernel"] + layers["proj"]["bias"]
    hidden = np.asarray(jax.nn.gelu(seen @ site["down"] + site["down_bias"], approximate=False))
    return hidden @ site["up"] + site["up_bias"]


@pytest.mark.parametrize("layout", [pytest.param("fused", marks=pytest.mark.slow), "head_major"])
def test_by_hand(layout):
    x = np.random.default_rng(0).normal(size=(DEPTH, 2, 3, WIDTH)).astype(np.float32)
    root = Root()
    params = perturbed(root.init(KEY, x[0]))
    adapter = depth_attention("attn", HEAD_DIM, layout, width=2)
    delta = perturbed(adapter.init(KEY, root.apply, params, x[0]))
    adapted = adapter.wrap(root.apply)

    def over_slices(x):
        return jax.vmap(lambda one: adapted(params, delta, one), axis_name=SLICES)(x)

    plain = jax.vmap(lambda one: root.apply(params, one))(x)
    np.testing.assert_allclose(over_slices(x) - plain, by_hand(params, delta, x, layout), atol=1e-5)
    gradient = jax.grad(
        lambda d: (jax.vmap(lambda one: adapted(params, d, one), axis_name=SLICES)(x) ** 2).sum()
    )(delta)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))
    # Without positions the slices are a set: in another order they give the same in that order.
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(over_slices(x[order]), over_slices(x)[order], atol=1e-5)
    # With the zeros it starts with it adds nothing, bit by bit.
    start = adapter.init(KEY, root.apply, params, x[0])
    np.testing.assert_array_equal(
        jax.vmap(lambda one: adapted(params, start, one), axis_name=SLICES)(x), plain
    )
    # A slab of one slice, and a picture, have nobody to attend to.
    alone = jax.vmap(lambda one: root.apply(params, one))(x[:1])
    np.testing.assert_array_equal(over_slices(x[:1]), alone)
    np.testing.assert_array_equal(adapted(params, delta, x[0]), root.apply(params, x[0]))


def test_slices_over_devices_give_what_a_slab_on_one_device_gives():
    """The axis of slices may be one of a mesh: the same adapter, one slice per device, keys and values gathered."""
    x = np.random.default_rng(0).normal(size=(DEPTH, 2, 3, WIDTH)).astype(np.float32)
    root = Root()
    params = perturbed(root.init(KEY, x[0]))
    adapter = depth_attention("attn", HEAD_DIM, width=2)
    delta = perturbed(adapter.init(KEY, root.apply, params, x[0]))
    adapted = adapter.wrap(root.apply)
    mesh = jax.make_mesh(
        (DEPTH,), (SLICES,), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:DEPTH]
    )
    place = jax.P(SLICES)

    def loss(apply):
        return jax.value_and_grad(lambda delta: (apply(delta) ** 2).mean())

    def over_devices(delta):
        one = jax.shard_map(
            lambda delta, x: adapted(params, delta, x[0])[None],
            mesh=mesh,
            in_specs=(jax.P(), place),
            out_specs=place,
        )
        return one(delta, x)

    sharded = jax.jit(over_devices)
    on_one = jax.vmap(lambda one: adapted(params, delta, one), axis_name=SLICES)(x)
    np.testing.assert_allclose(sharded(delta), on_one, atol=1e-5)
    assert "all-gather" in sharded.lower(delta).compile().as_text()
    value, gradient = jax.jit(loss(over_devices))(delta)
    expected = loss(lambda delta: jax.vmap(lambda one: adapted(params, delta, one), axis_name=SLICES)(x))(
        delta
    )
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, expected[1])


def test_bad_options_and_sites():
    with pytest.raises(BadAdapterConfig, match="either width or ratio"):
        depth_attention("attn", 3)
    with pytest.raises(BadAdapterConfig, match="'fused' or 'head_major'"):
        depth_attention("attn", 3, "rows", width=2)
    root = Root()
    params = root.init(KEY, jnp.zeros((2, 2, WIDTH)))
    for site, head_dim in (("attn/proj", HEAD_DIM), ("attn", 4)):
        with pytest.raises(WrongSite, match="no attention with qkv, proj"):
            depth_attention(site, head_dim, width=2).init(KEY, root.apply, params, jnp.zeros((2, 2, WIDTH)))


@pytest.mark.slow
def test_sd_trans_starts_as_the_model_of_slices_and_then_sees_all_of_them():
    """At the start, and in slabs of one, the model of slices; once moved, slice 0 sees the last one."""
    model, given = weights.load("lite-tiny-test")
    change = systems.SYSTEMS["sd_trans"].transform(model.spec, "none", 2) | {"depth": 3}
    (flat, _), (single, _), (slab, params) = (
        transform(config, model, given) for config in (change["of"], change | {"depth": 1}, change)
    )
    adapter = from_config(systems.adapter_config("sd_trans", model))
    adapted, alone, one = (adapt_model(adapter, m) for m in (slab, flat, single))
    of_slab, of_one = (
        jax.jit(lambda *inputs, m=m: m.apply(params, *inputs, None).logits) for m in (adapted, one)
    )

    @jax.jit
    def slices(delta, x):
        return jax.vmap(lambda image: alone.apply(params, delta, image, None).logits, out_axes=1)(x)

    zero = adapted.init(KEY, params)
    moved = perturbed(zero)
    x = np.random.default_rng(0).normal(size=slab.spec.input_shape).astype(np.float32)
    # Two programs, which the compiler fuses in two ways; op by op, as above, they give the same bits.
    np.testing.assert_allclose(of_slab(zero, x), slices(zero, x), atol=1e-6)
    np.testing.assert_array_equal(of_one(moved, x[:1]), slices(moved, x[:1]))
    after = of_slab(moved, x)
    assert float(jnp.abs(after - slices(moved, x)).max()) > 1e-3
    x[2] += 1
    assert float(jnp.abs(of_slab(moved, x)[:, 0] - after[:, 0]).max()) > 1e-4


def test_the_adapter_of_the_guide_adds_the_mean_over_the_slices():
    """docs/volumes.md: its code runs, and a collective over the named axis is all it takes."""
    guide = (Path(__file__).parents[2] / "docs" / "volumes.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(
        next(b for b in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "def mean_of_slices" in b),
        names,
    )
    x, root = np.random.default_rng(0).normal(size=(DEPTH, 2, 3, WIDTH)).astype(np.float32), Root()
    params, adapter = root.init(KEY, x[0]), names["mean_of_slices"]("attn")
    adapted = adapter.wrap(root.apply)
    delta = {"attn": {"share": jnp.full(WIDTH, 0.5)}}
    found, plain = (
        jax.vmap(one, axis_name=SLICES)(x)
        for one in (lambda image: adapted(params, delta, image), lambda image: root.apply(params, image))
    )
    np.testing.assert_allclose(found, plain + 0.5 * plain.mean(0), atol=1e-5)
