import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.convolution import (
    ConvBN,
    DepthwiseConv,
    PatchConv,
    UpConv,
    depthwise_grouped,
    depthwise_shifted,
)

X = jax.random.normal(jax.random.key(0), (6, 8, 5))


def same_as(ours: nn.Module, theirs: nn.Module):
    params = ours.init(jax.random.key(1), X)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(1), X))
    params = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(2), p.shape), params)
    for x in (X, jnp.stack([X, 2 * X])):
        np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=2e-5)


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (3, 4)])
def test_patches_times_a_matrix_are_the_convolution(patch):
    same_as(PatchConv(7, patch, patch), nn.Conv(7, patch, patch, "VALID"))


def test_up_convolution_is_the_transposed_convolution():
    same_as(UpConv(3, (2, 2), (2, 2)), nn.ConvTranspose(3, (2, 2), (2, 2)))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution_pads_both_sides(stride):
    options = {"use_bias": False, "feature_group_count": 5}
    theirs = nn.Conv(5, (3, 3), stride, padding=1, **options)
    same_as(DepthwiseConv(5, (3, 3), stride, **options), theirs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (5, 3)])
def test_shifted_products_are_the_grouped_convolution(stride, size):
    kernel = jax.random.normal(jax.random.key(3), (*size, 5))
    shifted = depthwise_shifted(X, kernel, stride)
    assert shifted.shape == (6 // stride, 8 // stride, 5)
    np.testing.assert_allclose(shifted, depthwise_grouped(X, kernel, stride), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [(3, 3), pytest.param((5, 3), marks=pytest.mark.slow), (1, 3)])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
def test_gradients_of_shifted_products_are_those_of_the_grouped_convolution(stride, size, shape):
    x = jnp.stack([X, 2 * X])[:, : shape[0], : shape[1]]
    kernel = jax.random.normal(jax.random.key(3), (*size, 5))

    def gradients(convolution):
        return jax.grad(
            lambda x, k: (jnp.sin(jax.vmap(lambda x: convolution(x, k, stride))(x))).sum(), (0, 1)
        )(x, kernel)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-4),
        gradients(depthwise_shifted),
        gradients(depthwise_grouped),
    )


def test_clients_on_a_mesh_keep_their_own_gradients():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("clients",), axis_types=auto, devices=jax.devices()[:2])
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 5))

    def gradient(x):
        return jax.grad(lambda x: jnp.sin(depthwise_shifted(x, kernel, 2)).sum())(x)

    x = jnp.stack([X, 2 * X])
    specs = {"in_specs": jax.P("clients"), "out_specs": jax.P("clients")}
    compiled = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs)).lower(x).compile()
    np.testing.assert_allclose(compiled(x), gradient(x), rtol=1e-5, atol=1e-6)
    assert "all-reduce" not in compiled.as_text()  # the frozen kernel's gradient is not made


def test_patches_that_overlap_are_refused():
    with pytest.raises(ValueError, match="strides"):
        PatchConv(4, (2, 2), 1).init(jax.random.key(0), X)


@pytest.mark.parametrize(
    "options", [{}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 3, "depthwise": True}]
)
def test_batch_norm_uses_its_stored_statistics(options):
    layer = ConvBN(5, **options)
    params = layer.init(jax.random.key(1), X)
    plain = layer.apply(params, X) * np.sqrt(1 + 1e-5)  # at the start: mean 0, variance 1
    names = ["scale", "bias", "mean", "var"]
    bn = {n: jax.random.uniform(jax.random.key(i), (5,), minval=0.5) for i, n in enumerate(names)}
    assert set(params["params"]["bn"]) == set(bn)
    expected = (plain - bn["mean"]) / np.sqrt(bn["var"] + 1e-5) * bn["scale"] + bn["bias"]
    out = layer.apply({"params": {**params["params"], "bn": bn}}, X)
    np.testing.assert_allclose(out, expected, atol=1e-5)
