"""Shapes, options and count of parameters of the 3-D U-Nets."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from medvfm_jax import models
from medvfm_jax.models.errors import BadModelOption

TINY = "unet-3d-tiny-test"


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build(TINY, classes=3, window=(8, 16, 24), channels=2, dtype=jnp.bfloat16)
    spec = model.spec
    assert (spec.rank, spec.classes, spec.resize, spec.input_shape) == (3, 3, "none", (8, 16, 24, 2))
    params = jax.eval_shape(model.init, jax.random.key(0))
    volume = jax.ShapeDtypeStruct(spec.input_shape, jnp.float32)
    finest, coarser = jax.eval_shape(model.encode, params, volume)
    assert finest.shape == spec.embedding == (4, 8, 12, 4)
    for found in (
        jax.eval_shape(model.apply, params, volume),
        jax.eval_shape(model.decode, params, (finest, coarser)),
    ):
        assert (found.logits.shape, found.logits.dtype) == ((3, *spec.logits_shape), jnp.float32)
        assert [logits.shape for logits in found.coarse] == [(3, 2, 4, 6)]


def test_a_window_of_another_size_has_the_same_parameters():
    counts = {models.build(TINY, window=window).parameters for window in [(8, 8, 16), (16, 24, 16)]}
    assert len(counts) == 1


def residual_unet_parameters(widths, blocks, classes):
    """nnU-Net's ResidualEncoderUNet with one input channel, counted layer by layer."""

    def conv(size, inputs, outputs, bias=True):  # with instance norm
        return size**3 * inputs * outputs + outputs * bias + 2 * outputs

    total, before = conv(3, 1, widths[0]), widths[0]
    for width, number in zip(widths, blocks, strict=True):
        total += conv(3, before, width) + (2 * number - 1) * conv(3, width, width)
        total += conv(1, before, width, bias=False) if before != width else 0
        before = width
    for fine, coarse in itertools.pairwise(widths):
        total += 8 * coarse * fine + fine  # transposed convolution
        total += conv(3, 2 * fine, fine) + classes * (fine + 1)
    return total


def test_it_has_the_parameters_of_the_planned_network():
    """ResEnc M for patches of 40 x 56 x 40: four stages of 1, 3, 4, 6 blocks."""
    expected = residual_unet_parameters((32, 64, 128, 256), (1, 3, 4, 6), 3)
    assert models.build("unet-3d", classes=3, window=(40, 56, 40)).parameters == expected


@pytest.mark.parametrize("window", [(16, 16), (16, 16, 20), (0, 16, 16), (8, 8, 8), (16, 16, 16.0)])
def test_windows_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="three multiples of 8, one of them larger"):
        models.build(TINY, window=window)
    with pytest.raises(BadModelOption, match="at least 1, not 2, 0"):
        models.build(TINY, channels=0)


@pytest.mark.slow
def test_folding_gives_every_voxel_of_a_cube_a_logit_of_its_own():
    model = models.build(TINY, window=(8, 8, 16))
    params = model.init(jax.random.key(0))
    head = params["params"]["mask_decoder"]["head"]
    bias = jnp.arange(16.0).reshape(2, 2, 2, 2)  # place in the cube, class
    head |= {"kernel": jnp.zeros_like(head["kernel"]), "bias": bias.reshape(-1)}
    logits = model.apply(params, jnp.zeros((8, 8, 16, 1))).logits
    assert jnp.array_equal(logits[1, 2::2, 1::2, 0::2], jnp.full((3, 4, 8), bias[0, 1, 0, 1]))
