from dataclasses import replace

import numpy as np
import pytest

from medvfm_jax.images import BadImage, frame_of, preprocess, restore
from medvfm_jax.images.tiles import levelled, limits_of, part, side_by_side, tiled
from medvfm_jax.types import ModelSpec

TILE = 8
SPEC = ModelSpec("tiles", 16, (16, 16, 3), 16, task="semantic", tile=TILE)
WHOLE = replace(SPEC, tile=None)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(20, 200, (height, width, 3)).astype(np.uint8)


def seen(spec):
    """A model that gives back what it sees, in the picture's own pixels, channels first."""

    def predict(image, limits=None):
        prepared, frame = preprocess(spec, image, limits)
        return restore(frame, np.moveaxis(prepared, -1, 0))

    return predict


@pytest.mark.parametrize("normalise", ["minmax", "mean_std_255", "mean_std_unit", "unit", "z_scores"])
def test_a_picture_that_is_one_tile_is_predicted_as_a_whole_bit_by_bit(normalise):
    image = picture(TILE, TILE)
    of_tiles, whole = replace(SPEC, normalise=normalise), replace(WHOLE, normalise=normalise)
    np.testing.assert_array_equal(tiled(of_tiles, image, 0.5, seen(of_tiles)), seen(whole)(image))


@pytest.mark.parametrize("shape", [(20, 13), (8, 30), (5, 21), (3, 6)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiles_of_what_they_see_blend_into_the_picture_scaled_as_a_whole(shape, overlap):
    """Weights sum to one everywhere, also where a side is shorter than a tile."""
    image = picture(*shape)
    ones = tiled(SPEC, image, overlap, lambda tile, limits: np.ones((2, *tile.shape[:2]), np.float32))
    assert ones.shape == (2, *shape)
    np.testing.assert_allclose(ones, 1, rtol=1e-6)
    exact = tiled(SPEC, image, overlap, lambda tile, limits: np.moveaxis(tile, -1, 0))
    np.testing.assert_allclose(np.moveaxis(exact, 0, -1), image / 255, rtol=1e-5)
    levels = (image / 255 - image.min() / 255) / ((image.max() - image.min()) / 255)
    np.testing.assert_allclose(levelled(SPEC, image), levels, atol=1e-5)


def test_a_tile_is_enlarged_as_much_at_the_border_of_a_picture_as_elsewhere():
    assert frame_of(SPEC, 8, 8).scaled == (16, 16)
    assert frame_of(SPEC, 3, 6).scaled == (6, 12)
    assert frame_of(replace(SPEC, resize="stretch"), 3, 6).scaled == (6, 12)
    assert frame_of(WHOLE, 3, 6).scaled == (8, 16)
    with pytest.raises(BadImage, match="A part of 9 x 8 pixels is larger than a tile of 8"):
        frame_of(SPEC, 9, 8)


def test_a_tile_of_background_alone_stays_as_dark_as_it_is_in_the_picture():
    """Scaled on its own its noise would fill 0 to 1."""
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = np.random.default_rng(0).integers(0, 3, (8, 8, 3))
    image[2:6, 10:14] = 200
    darkest = preprocess(SPEC, part(levelled(SPEC, image), (0, 0), TILE), (0.0, 1.0))[0]
    assert 0 < darkest.max() <= 2 / 200 + 1e-6
    assert preprocess(WHOLE, image[:, :8])[0].max() == 1


def test_limits_are_of_what_the_model_sees_not_of_single_pixels():
    """Tiles of 8 seen at 4: areas of 2 x 2 are averaged, and a bright pixel with them."""
    unit = np.full((8, 16, 1), 0.25, np.float32)
    unit[3, 9] = 1
    small = replace(SPEC, input_shape=(4, 4, 3))
    assert limits_of(small, unit) == pytest.approx((0.25, 0.25 * 0.75 + 0.25))
    assert limits_of(SPEC, unit) == pytest.approx((0.25, 1))
    assert limits_of(replace(SPEC, normalise="unit"), unit) is None
    assert levelled(small, unit).max() == 1  # the pixel itself is cut off there


def test_as_few_tiles_as_cover_the_picture():
    assert list(side_by_side((8, 20), 8)) == [(0, 0), (0, 6), (0, 12)]
    assert list(side_by_side((3, 9), 8)) == [(0, 0), (0, 1)]
