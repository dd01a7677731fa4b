"""The sum of 2-D convolutions is the 3-D convolution, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.convolution_3d import Conv3d, conv3d_by_depth, conv3d_direct, conv3d_strided


@pytest.mark.parametrize(
    ("window", "padding"),
    [
        ((3, 3, 3), ((1, 1), (1, 1), (1, 1))),
        ((2, 2, 2), ((1, 0), (1, 0), (1, 0))),
        ((1, 3, 2), ((0, 0), (1, 1), (0, 1))),
    ],
)
def test_it_equals_the_direct_convolution_with_both_gradients(window, padding):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 4, 6, 5, 3))  # a batch under vmap
    kernel = jax.random.normal(keys[1], (*window, 3, 4))

    def run(function):
        y, back = jax.vjp(lambda x, k: jax.vmap(lambda one: function(one, k, padding))(x), x, kernel)
        return y, *back(jax.random.normal(keys[2], y.shape))

    for ours, direct in zip(run(conv3d_by_depth), run(conv3d_direct), strict=True):
        np.testing.assert_allclose(ours, direct, rtol=1e-4, atol=1e-4)


def test_a_stride_of_two_is_a_convolution_of_cubes():
    x = jax.random.normal(jax.random.key(0), (4, 6, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 5))
    expected = conv3d_direct(x, kernel, ((1, 1),) * 3, stride=2)
    np.testing.assert_allclose(conv3d_strided(x, kernel), expected, rtol=1e-4, atol=1e-4)


def test_the_bias_is_added_once():
    layer, x = Conv3d(2, stride=2), jnp.zeros((2, 2, 2, 1))
    params = {"params": {"kernel": jnp.ones((3, 3, 3, 1, 2)), "bias": jnp.array([1.0, -2.0])}}
    np.testing.assert_array_equal(layer.apply(params, x), [[[[1.0, -2.0]]]])
