"""deepbet's LinkNet: its pieces against plain definitions; parity with its own networks is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medvfm_jax import models
from medvfm_jax.models.convolution_3d import (
    conv3d_direct,
    conv3d_doubling,
    conv3d_strided,
    max_pool3d_halving,
)
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.linknet3d.modules import instance_norm
from medvfm_jax.models.linknet3d.port_table import LINKNET3D
from medvfm_jax.weights import port


def test_it_has_the_parameters_of_the_published_network():
    """2,126,258 numbers in the state dict of ``model.pt`` of deepbet 1.0.2."""
    for name in ("deepbet", "deepbet-box"):
        assert models.build(name, window=(32, 32, 64)).parameters == 2_126_258


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("deepbet-tiny-test", window=(16, 24, 32), dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    volume = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    embedding = jax.eval_shape(model.encode, params, volume)
    assert embedding[-1].shape == model.spec.embedding
    for logits in (
        jax.eval_shape(model.apply, params, volume).logits,
        jax.eval_shape(model.decode, params, embedding).logits,
    ):
        assert (logits.shape, logits.dtype) == ((2, 16, 24, 32), jnp.float32)


def test_doubling_is_the_transposed_convolution():
    """Stride 2, padding 1, output padding 1: the input with holes, convolved with the flipped kernel."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 3))
    expected = lax.conv_general_dilated(
        x[None], kernel, (1,) * 3, ((1, 2),) * 3, (2,) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )[0]
    np.testing.assert_allclose(conv3d_doubling(x, kernel), expected, atol=1e-4)


@pytest.mark.parametrize("side", [3, 7])
def test_strided_convolutions_of_either_size(side):
    x = jax.random.normal(jax.random.key(0), (8, 10, 12, 2))
    kernel = jax.random.normal(jax.random.key(1), (side,) * 3 + (2, 3))
    expected = conv3d_direct(x, kernel, ((side // 2,) * 2,) * 3, stride=2)
    np.testing.assert_allclose(conv3d_strided(x, kernel), expected, atol=1e-3)


def test_pooling_takes_the_maximum_of_its_window():
    x = jax.random.normal(jax.random.key(0), (4, 6, 8, 2)) - 5  # below 0: the border is no zero
    pad = ((1, 1),) * 3 + ((0, 0),)
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (3, 3, 3, 1), (2, 2, 2, 1), pad)
    np.testing.assert_array_equal(max_pool3d_halving(x), expected)


def test_instance_norm_forgets_scale_and_offset():
    x = jax.random.normal(jax.random.key(0), (4, 5, 6, 3))
    y = instance_norm(x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_allclose(instance_norm(7 * x + 3), y, atol=1e-4)


def test_the_way_to_torch_and_back_is_exact():
    model = models.build("deepbet-tiny-test")
    params = jax.jit(model.init)(jax.random.key(0))
    state = port.to_torch(LINKNET3D, params)
    assert state["up0.tp_conv.0.weight"].shape == (2, 2, 3, 3, 3)
    back = port.to_jax(LINKNET3D, state, params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, dict(params))))


def test_windows_and_channels_that_do_not_fit():
    for window in ((8, 8, 8), (8, 16, 12), (16, 16), (16, 16, 16.0)):
        with pytest.raises(BadModelOption, match="three multiples of 8"):
            models.build("deepbet-tiny-test", window=window)
    with pytest.raises(BadModelOption, match="1 channel, not 2"):
        models.build("deepbet-tiny-test", channels=2)
