import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvfm_jax.images import BadImage, from_model_points, preprocess, restore, to_model_points, to_target
from medvfm_jax.images.frame import Frame, frame_of, three_channels
from medvfm_jax.types import IGNORE, ModelSpec

SPEC = ModelSpec("test", input_shape=64, embedding=(16, 16, 8), logits_shape=32)
SIDES = st.integers(2, 150)


@given(SIDES, SIDES)
@settings(max_examples=50, deadline=None)
def test_the_longest_side_fits_and_the_rest_is_zero(height, width):
    image = np.random.default_rng(0).integers(1, 255, (height, width, 3)).astype(np.uint8)
    array, frame = preprocess(dataclasses.replace(SPEC, normalise="unit"), image)
    assert array.shape == (64, 64, 3)
    assert array.dtype == np.float32
    assert max(frame.scaled) == 64
    h, w = frame.scaled
    assert (array[h:] == 0).all()
    assert (array[:, w:] == 0).all()
    assert (array[:h, :w] > 0).all()


@given(SIDES, SIDES, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_points_there_and_back(height, width, u, v):
    frame = frame_of(SPEC, height, width)
    xy = np.array([[u * (width - 1), v * (height - 1)]], np.float32)
    moved = to_model_points(frame, xy)
    np.testing.assert_allclose(from_model_points(frame, moved), xy, atol=1e-3)
    assert (moved <= frame.scaled[::-1]).all()


def test_points_scale_as_in_sam():
    frame = frame_of(SPEC, 100, 200)
    assert frame.scaled == (32, 64)
    np.testing.assert_allclose(to_model_points(frame, [[100, 50]]), [[32, 16]])


@pytest.mark.parametrize("resize", ["longest_side", "stretch"])
@pytest.mark.parametrize("shape", [(64, 64), (90, 41), (20, 33), (200, 150)])
def test_restore_puts_a_disc_back_where_it_was(shape, resize):
    spec = dataclasses.replace(SPEC, resize=resize, normalise="unit")
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    disc = np.hypot((rows - shape[0] * 0.6) / shape[0], (columns - shape[1] * 0.4) / shape[1]) < 0.25
    array, frame = preprocess(spec, disc)
    low = array[..., 0].reshape(32, 2, 32, 2).mean((1, 3))  # as if the model had segmented it perfectly
    back = restore(frame, low[None, None] - 0.5)
    assert back.shape == (1, 1, *shape)
    found = back[0, 0] > 0
    assert 2 * (found & disc).sum() / (found.sum() + disc.sum()) > 0.93


def test_restore_of_a_ramp_is_exact_in_the_middle():
    """Linear interpolation keeps linear functions: column j of the image has the value of its position."""
    frame = frame_of(SPEC, 48, 96)
    ramp = np.broadcast_to((np.arange(32) + 0.5) * 3.0, (32, 32))  # in image pixels: 96 / 32 = 3 each
    back = restore(frame, ramp)
    np.testing.assert_allclose(back[10, 3:-3], np.arange(96)[3:-3] + 0.5, rtol=1e-5)


def test_minmax_spans_0_to_1_even_for_16_bits_and_constants():
    image = np.random.default_rng(0).integers(20000, 30000, (64, 64)).astype(np.uint16)
    array, _ = preprocess(SPEC, image)
    assert (array.min(), array.max()) == (0.0, 1.0)
    assert (array[..., 0] == array[..., 2]).all()
    constant, _ = preprocess(SPEC, np.full((64, 64), 7, np.uint8))
    assert (constant == 0).all()


@pytest.mark.parametrize("number", [0, 1, 77, 128, 200, 255])
@pytest.mark.parametrize("shape", [(20, 30), (300, 210, 3), (64, 64), (1000, 3)])
@pytest.mark.parametrize("rule", ["minmax", "z_scores"])
def test_an_evenly_coloured_picture_is_prepared_as_nothing(number, shape, rule):
    """Rounding of the resampling is no contrast."""
    spec = dataclasses.replace(SPEC, normalise=rule)
    assert not preprocess(spec, np.full(shape, number, np.uint8))[0].any()


def test_a_single_colour_spans_0_to_1_over_its_channels():
    array, frame = preprocess(SPEC, np.full((20, 30, 3), [77, 128, 3], np.uint8))
    inside = array[: frame.scaled[0], : frame.scaled[1]]
    expected = np.broadcast_to((np.array([77, 128, 3]) - 3) / 125, inside.shape)
    np.testing.assert_allclose(inside, expected, rtol=1e-6)


def test_a_tile_of_one_intensity_is_nothing_between_the_limits_of_its_picture():
    unit = np.float32(77) / np.float32(255)
    even = np.full((20, 30, 1), unit, np.float32)
    assert not preprocess(SPEC, even, (float(unit), float(unit)))[0].any()
    array, frame = preprocess(SPEC, even, (0.0, 1.0))
    assert (array[: frame.scaled[0]] == unit).all()


@pytest.mark.parametrize(("step", "most"), [(2e-6, 1.0), (5e-7, 0.0)])
def test_a_difference_of_one_in_a_million_is_rounding(step, most):
    picture = np.full((64, 64), 0.25, np.float32)
    picture[20:30] += np.float32(step * 0.25)
    assert preprocess(SPEC, picture)[0].max() == most


@pytest.mark.parametrize(("step", "most"), [(4e-6, 1.0), (5e-7, 1e-6)])
def test_z_scores_of_rounding_are_not_enlarged(step, most):
    picture = np.full((64, 64), 0.25, np.float32)
    picture[::2] += np.float32(step * 0.25)  # a deviation of half the step
    found = preprocess(dataclasses.replace(SPEC, normalise="z_scores"), picture)[0].max()
    np.testing.assert_allclose(found, 1, rtol=1e-3) if most == 1 else np.testing.assert_array_less(
        found, most
    )


def test_z_scores_without_a_deviation_are_differences_to_the_mean():
    """Where all that is shown has one intensity, as in a mask."""
    picture = np.zeros((64, 64), np.float32)
    picture[:20] = 0.5
    array = preprocess(dataclasses.replace(SPEC, normalise="z_scores"), picture)[0]
    np.testing.assert_array_equal(array[..., 0], picture - 0.5)


def test_sam_and_imagenet_rules():
    image = np.full((64, 64, 3), [10, 20, 30], np.uint8)
    sam = dataclasses.replace(SPEC, normalise="mean_std_255", mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 9.0))
    np.testing.assert_allclose(preprocess(sam, image)[0][5, 5], [4.5, 6, 3], rtol=1e-5)
    unit = dataclasses.replace(SPEC, normalise="mean_std_unit", mean=(0.0, 0.0, 0.0), std=(1.0, 0.5, 0.25))
    np.testing.assert_allclose(preprocess(unit, image)[0][5, 5], [10 / 255, 40 / 255, 120 / 255], rtol=1e-5)


def test_z_scores_are_of_what_lies_above_zero():
    image = np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8)
    image[:20] = 0
    array = preprocess(dataclasses.replace(SPEC, normalise="z_scores"), image)[0][..., 0]
    shown = array[image > 0]
    np.testing.assert_allclose((shown.mean(), shown.std()), (0, 1), atol=1e-5)
    np.testing.assert_allclose(array[0, 0], -image[image > 0].mean() / image[image > 0].std(), rtol=1e-5)
    for number in (0, 7):
        constant = np.full((64, 64), number, np.uint8)
        assert (preprocess(dataclasses.replace(SPEC, normalise="z_scores"), constant)[0] == 0).all()


def test_the_padding_of_normalised_images_is_zero():
    sam = dataclasses.replace(
        SPEC, normalise="mean_std_255", mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0)
    )
    array, frame = preprocess(sam, np.full((32, 64, 3), 200, np.uint8))
    assert frame.scaled == (32, 64)
    assert (array[32:] == 0).all()


def test_lite_medsam_reference_numbers():
    """Shrinking by 2 averages 2 × 2 blocks, then the whole picture is scaled to 0..1."""
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    small = image.reshape(64, 2, 64, 2, 3).astype(np.float64).mean((1, 3))
    expected = (small - small.min()) / (small.max() - small.min())
    np.testing.assert_allclose(preprocess(SPEC, image)[0], expected, atol=1e-5)


def test_channels():
    image = np.arange(2 * 2 * 5).reshape(2, 2, 5).astype(np.uint16)
    np.testing.assert_array_equal(three_channels(image), image[..., :3])
    np.testing.assert_array_equal(three_channels(image[..., :2])[..., 2], image[..., 0])  # mean, rounded down
    assert three_channels(image[..., 0]).shape == (2, 2, 3)
    with pytest.raises(BadImage, match="no picture"):
        three_channels(np.zeros(3))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_target_of_an_image_that_is_not_shrunk_is_the_mask_itself(factor):
    frame = Frame(
        (16 // factor, 32 // factor),
        (16 // factor * factor * 2, 32 // factor * factor * 2),
        (64, 64),
        (32, 32),
    )
    masks = np.random.default_rng(0).integers(0, 2, (2, *frame.original))
    target = to_target(frame, masks)
    assert target.shape == (2, 32, 32)
    height, width = (factor * n for n in frame.original)
    np.testing.assert_array_equal(target[:, :height, :width], np.kron(masks, np.ones((1, factor, factor))))
    assert (target[:, height:] == IGNORE).all()
    assert (target[:, :, width:] == IGNORE).all()
    assert (to_target(frame, masks[0], 0)[height:] == 0).all()


@pytest.mark.parametrize("shape", [(1024, 1024), (768, 768), (360, 360), (520, 696), (37, 50)])
def test_a_target_conserves_the_area_of_every_part(shape):
    frame = frame_of(dataclasses.replace(SPEC, input_shape=256, logits_shape=256), *shape)
    masks = np.random.default_rng(0).random(shape) < np.array([0.1, 0.5])[:, None, None]
    target = to_target(frame, masks, 0)
    area = np.prod(shape) / np.prod(frame.scaled)  # of a logit, in pixels of the image
    np.testing.assert_allclose(target.sum((1, 2)) * area, masks.sum((1, 2)), rtol=1e-5)
    whole = to_target(frame, np.ones(shape))[: frame.scaled[0], : frame.scaled[1]]
    assert (whole == 1).all()


def disc(size, centre, radius):
    y, x = np.mgrid[:size, :size] + 0.5
    return np.hypot(y - centre[0], x - centre[1]) < radius


@pytest.mark.parametrize(
    ("ratio", "radius", "dice", "off"),
    # The worst Dice and distance. The pixel under the centre of a logit gives Dice 0.87, 0.94, 0.70, 0.89, 0.97 and
    # half a pixel in the mean. With logits of 256 x 256 the ratios are those of images of 512 and 1024 pixels.
    [
        (2, 6, 0.98, 0.02),
        (2, 12, 0.99, 0.01),
        (4, 6, 0.90, 0.06),
        (4, 12, 0.975, 0.03),
        (4, 40, 0.995, 0.003),
    ],
)
def test_a_disc_comes_back_where_it_was(ratio, radius, dice, off):
    """At every position relative to the logits: its centre of mass does not move, and its mask is found again."""
    size = 64 * ratio
    frame, centres, moved = (
        Frame((size, size), (64, 64), (64, 64), (64, 64)),
        (np.arange(64) + 0.5) * ratio,
        [],
    )
    steps = (np.arange(2 * ratio) + 0.5) / 2
    for shift in np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2):
        mask = disc(size, size // 2 + shift, radius)
        target = to_target(frame, mask, 0)
        mass = np.array([(target.sum(1 - axis) * centres).sum() for axis in (0, 1)]) / target.sum()
        moved.append(mass - np.argwhere(mask).mean(0) - 0.5)
        back = restore(frame, target) > 0.5
        assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > dice
    assert np.abs(np.mean(moved, 0)).max() < 1e-3
    assert np.abs(moved).max() < off


@given(SIDES, SIDES)
@settings(max_examples=50, deadline=None)
def test_a_target_restored_is_the_label_again(height, width):
    """A half plane survives the way to the logits' grid and back, up to one pixel of either grid."""
    frame = frame_of(SPEC, height, width)
    label = np.zeros((height, width), np.int32)
    label[:, width // 2 :] = 1
    back = restore(frame, to_target(frame, label, 0)) > 0.5
    tolerance = 1 + int(np.ceil(max(height, width) / 32))
    middle = slice(max(0, width // 2 - tolerance), width // 2 + tolerance)
    wrong = back != (label > 0)
    wrong[:, middle] = False
    # the far edge borders on the padding, within one logits pixel
    assert not wrong[: height - tolerance, : width - tolerance].any()


SLAB = dataclasses.replace(SPEC, input_shape=(3, 64, 64, 3), logits_shape=(3, 32, 32))
PATCH = ModelSpec("patch", (4, 8, 6, 2), (1,), (4, 8, 6), resize="none", normalise="unit")


def test_a_slab_is_prepared_and_restored_slice_by_slice():
    """Input, target and logits on the image's grid: each slice as if it were alone."""
    rng = np.random.default_rng(0)
    slab, masks = rng.random((3, 20, 30, 1), np.float32), rng.integers(0, 2, (2, 3, 20, 30))
    logits = rng.normal(size=(2, 3, 32, 32)).astype(np.float32)
    prepared, frame = preprocess(SLAB, slab)
    alone, flat = zip(*(preprocess(SPEC, picture) for picture in slab))
    assert (frame.original, frame.scaled) == ((3, *flat[0].original), (3, *flat[0].scaled))
    np.testing.assert_array_equal(prepared, np.stack(alone))
    for i in range(3):
        np.testing.assert_array_equal(to_target(frame, masks)[:, i], to_target(flat[i], masks[:, i]))
        np.testing.assert_array_equal(restore(frame, logits)[:, i], restore(flat[i], logits[:, i]))


def test_a_patch_keeps_its_voxels():
    patch = np.random.default_rng(0).random((4, 8, 6, 2), np.float32)
    prepared, frame = preprocess(PATCH, patch)
    np.testing.assert_array_equal(prepared, patch)
    masks = patch[None, ..., 0] > 0.5
    np.testing.assert_array_equal(to_target(frame, masks), masks)
    np.testing.assert_array_equal(restore(frame, patch[..., 0]), patch[..., 0])


def test_pieces_that_do_not_fit_are_refused():
    for spec, shape in ((SLAB, (2, 20, 30, 1)), (PATCH, (4, 8, 5, 2)), (SLAB, (20, 30, 1))):
        with pytest.raises(BadImage, match="do not fit"):
            preprocess(spec, np.zeros(shape, np.float32))
    with pytest.raises(BadImage, match="has 1 channel; patch was built for 2"):
        preprocess(PATCH, np.zeros((4, 8, 6, 1), np.float32))
