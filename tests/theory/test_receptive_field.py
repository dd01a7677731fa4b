"""The effective receptive field of stacked box filters, whose variance is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.theory.receptive_field import extent, squared_gradient


def boxes(count, side, dilation=1):
    """``count`` convolutions with equal weights, of an image whose channels are added up."""

    def encode(image):
        x = image.sum(-1)[None, None]
        for _ in range(count):
            kernel = jnp.full((1, 1, side, side), 1 / side**2)
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", rhs_dilation=(dilation, dilation))
        return x[0, 0, :, :, None]

    return encode


def field(encode, size=61, place=(30, 30)):
    with jax.enable_x64(True):
        at = jnp.array(place)
        return np.asarray(squared_gradient(encode, jnp.zeros((size, size, 2)), at, jax.random.key(0)))


@pytest.mark.parametrize(("count", "side", "dilation"), [(10, 3, 1), (2, 5, 1), (3, 3, 3)])
def test_variance_of_stacked_boxes(count, side, dilation):
    """n (k^2 - 1) / 12, times the square of the dilation."""
    found = extent(field(boxes(count, side, dilation)) ** 0.5, (30, 30))
    expected = count * (side**2 - 1) / 12 * dilation**2
    assert found.height**2 == pytest.approx(expected, rel=1e-9)
    assert found.width**2 == pytest.approx(expected, rel=1e-9)


def test_the_square_holds_95_percent():
    """19 of 20 pixels of a row within 9 of the middle, and one at 20."""
    weights = np.zeros((41, 41))
    weights[20, 11:30] = 1
    weights[20, 40] = 1
    found = extent(weights, (20, 20))
    assert found.square == 19
    assert found.height == 0
    assert found.width == pytest.approx(((2 * sum(i * i for i in range(10)) + 400) / 20) ** 0.5)


def test_signs_add_up_the_channels():
    """A map whose channels are known multiples of pixels: the expectation is the sum of squares of its rows."""
    matrix = np.random.default_rng(0).standard_normal((3, 2, 2))

    def encode(image):
        return jnp.einsum("chw,hwk->c", matrix, image)[None, None]

    with jax.enable_x64(True):
        image, place = jnp.zeros((2, 2, 1)), jnp.array((0, 0))
        keys = jax.random.split(jax.random.key(0), 4000)
        found = jax.vmap(lambda key: squared_gradient(encode, image, place, key))(keys)
    assert np.asarray(found).mean(0) == pytest.approx((matrix**2).sum(0), rel=0.1)


def test_a_place_that_depends_on_nothing_is_refused():
    with pytest.raises(ValueError, match="no pixel"):
        extent(np.zeros((3, 3)), (1, 1))
    with pytest.raises(ValueError, match="not finite"):
        extent(np.full((3, 3), np.nan), (1, 1))
