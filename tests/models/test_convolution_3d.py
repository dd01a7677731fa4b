"""The sum of 2-D convolutions is the 3-D convolution, with its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.convolution_3d import Conv3d, conv3d_by_depth, conv3d_direct, conv3d_strided

ONE = ((1, 1),) * 3


def with_gradients(function, x, kernel):
    """Result for a batch, and the gradients of both arguments for a fixed cotangent."""

    @jax.jit
    def run(x, kernel):
        y, back = jax.vjp(lambda x, k: jax.vmap(lambda one: function(one, k))(x), x, kernel)
        return y, *back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return run(x, kernel)


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("window", "padding"), [((3, 3, 3), ONE), ((1, 3, 2), ((0, 0), (1, 1), (0, 1)))])
def test_it_equals_the_direct_convolution_with_both_gradients(window, padding):
    x, kernel = numbers(2, 4, 6, 5, 3), numbers(*window, 3, 4)
    ours, direct = (
        with_gradients(functools.partial(f, padding=padding), x, kernel) for f in (_by_depth, conv3d_direct)
    )
    for one, other in zip(ours, direct, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def _by_depth(x, kernel, padding):  # a function with its own gradient takes no keywords
    return conv3d_by_depth(x, kernel, padding)


def test_a_stride_of_two_is_a_convolution_of_cubes():
    x, kernel = numbers(1, 4, 6, 8, 3), numbers(3, 3, 3, 3, 5)
    direct = functools.partial(conv3d_direct, padding=ONE, stride=2)
    for one, other in zip(
        with_gradients(conv3d_strided, x, kernel), with_gradients(direct, x, kernel), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_bias_is_added_once():
    layer, x = Conv3d(2, stride=2), jnp.zeros((2, 2, 2, 1))
    params = {"params": {"kernel": jnp.ones((3, 3, 3, 1, 2)), "bias": jnp.array([1.0, -2.0])}}
    np.testing.assert_array_equal(jax.jit(layer.apply)(params, x), [[[[1.0, -2.0]]]])
