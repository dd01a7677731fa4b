import dataclasses

import numpy as np
import pytest

from medvfm_jax.data.augment import (
    AUGMENTATIONS,
    FLIPS,
    FULL,
    INSTANCE_OUTSIDE,
    LABEL_OUTSIDE,
    NONE,
    AugmentConfig,
    augment,
    augment_slab,
    usual_augmentation,
)
from medvfm_jax.images.intensity import to_unit
from medvfm_jax.types import IGNORE

OUTSIDE = (LABEL_OUTSIDE, INSTANCE_OUTSIDE)
SEEDS = range(12)
PICTURE = np.random.default_rng(0).integers(0, 256, (11, 7, 3)).astype(np.uint8)
NUMBERS = np.arange(1, 78).reshape(11, 7)  # every pixel an instance, so that each can be found again
LABEL = NUMBERS % 3
EXACT_MOVES = AugmentConfig(affine=0.0, intensity=0.0)
AFFINE = AugmentConfig(False, False, False, affine=1.0, intensity=0.0)
STILL = dataclasses.replace(AFFINE, rotate=0.0, zoom=(1.0, 1.0), shift=0.0)
INTENSITY = dataclasses.replace(NONE, intensity=1.0, gamma=(1, 1), contrast=(1, 1), brightness=0, noise=0)


def changed(config, seed, picture=PICTURE, maps=(LABEL, NUMBERS), longest=64):
    """(picture, maps) after one augmentation."""
    rng = np.random.default_rng(seed)
    return augment(rng, config, picture, maps, longest=longest, outside=OUTSIDE[: len(maps)])


def symmetries(array):
    """The eight ways to lay a picture onto its side or back."""
    turned = [np.rot90(array, k) for k in range(4)]
    return turned + [a[:, ::-1] for a in turned]


def which(array, candidates):
    same = [i for i, c in enumerate(candidates) if c.shape == array.shape and (c == array).all()]
    assert len(same) == 1
    return same[0]


# Exact moves


@pytest.mark.parametrize("seed", SEEDS)
def test_flips_and_turns_lose_nothing_and_take_the_maps_along(seed):
    image, (label, numbers) = changed(EXACT_MOVES, seed)
    assert sorted(numbers.reshape(-1)) == list(range(1, 78))  # a permutation of the pixels: invertible
    np.testing.assert_array_equal(image, PICTURE.reshape(-1, 3)[numbers - 1])
    np.testing.assert_array_equal(label, LABEL.reshape(-1)[numbers - 1])
    assert (image.dtype, label.dtype) == (PICTURE.dtype, LABEL.dtype)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((True, True, True), set(range(8))),
        ((True, True, False), {0, 2, 4, 6}),
        ((True, False, False), {0, 4}),
        ((False, True, False), {0, 6}),
        ((False, False, True), {0, 1}),  # a quarter turn is no mirror image
        ((False, False, False), {0}),
    ],
)
def test_every_symmetry_that_is_switched_on_happens_and_no_other(options, expected):
    config = AugmentConfig(*options, affine=0.0, intensity=0.0)
    candidates = symmetries(NUMBERS)
    seen = [which(changed(config, seed)[1][1], candidates) for seed in range(80)]
    assert set(seen) == expected
    share = 80 / len(expected)
    assert all(share / 3 < seen.count(s) < share * 3 for s in expected)


def test_named_settings_are_what_their_names_say():
    for seed in SEEDS:
        assert changed(NONE, seed)[0] is PICTURE
        assert changed(NONE, seed)[1][1] is NUMBERS
    assert {changed(FLIPS, seed)[0].shape for seed in SEEDS} == {PICTURE.shape}
    assert AugmentConfig() == FULL


# Affine moves


@pytest.mark.parametrize("seed", SEEDS)
def test_the_maps_stay_on_the_picture_under_rotation_zoom_and_shift(seed):
    height, width = 40, 30
    where = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    picture = (where / 64).astype(np.float32)  # two channels that say which row and column a pixel came from
    numbers = where[..., 0] * width + where[..., 1] + 1
    image, (label, moved) = changed(AFFINE, seed, picture, (numbers * 0, numbers))
    rows, columns = np.divmod(moved - 1, width)
    # Off the rim the picture is interpolated exactly, and the nearest pixel is at most half a pixel away.
    inner = (moved > 0) & (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    assert inner.mean() > 0.3
    found = image[inner] * 64
    assert np.abs(found - np.stack([rows, columns], -1)[inner]).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(label == IGNORE, moved == INSTANCE_OUTSIDE)  # outside: nobody labelled it
    assert (numbers != moved).any()


def test_what_comes_into_view_is_black_and_unlabelled():
    config = dataclasses.replace(STILL, zoom=(0.5, 0.5))
    picture, ones = np.full((40, 40, 1), 255, np.uint8), np.ones((40, 40), np.int32)
    image, (label, numbers) = changed(config, 0, picture, (ones, ones))
    inside = np.zeros((40, 40), bool)
    inside[10:30, 10:30] = True
    np.testing.assert_array_equal(label, np.where(inside, 1, IGNORE))
    np.testing.assert_array_equal(numbers, inside)
    np.testing.assert_allclose(image[..., 0], inside, atol=1e-6)


def test_zooming_in_enlarges_about_the_centre():
    square = np.zeros((40, 40), np.int32)
    square[16:24, 16:24] = 1
    expected = np.zeros((40, 40), np.int32)
    expected[12:28, 12:28] = 1
    config = dataclasses.replace(STILL, zoom=(2.0, 2.0))
    np.testing.assert_array_equal(changed(config, 0, square[..., None] / 1.0, (square,))[1][0], expected)


def test_rotations_keep_the_centre_and_stay_below_the_limit():
    bar = np.zeros((41, 41), np.int32)
    bar[20, 20:] = 1
    angles = []
    for seed in range(40):
        _, (moved,) = changed(dataclasses.replace(STILL, rotate=30.0), seed, bar[..., None] / 1.0, (bar,))
        assert moved[20, 20] == 1
        rows, columns = np.nonzero(moved == 1)
        far = np.argmax(columns)
        angles.append(np.degrees(np.arctan2(rows[far] - 20, columns[far] - 20)))
    assert np.abs(angles).max() < 33
    assert min(angles) < -15
    assert max(angles) > 15


def test_without_a_motion_nothing_moves():
    image, maps = changed(STILL, 0)
    np.testing.assert_allclose(image, to_unit(PICTURE), atol=1e-6)
    for moved, map_ in zip(maps, (LABEL, NUMBERS)):
        np.testing.assert_array_equal(moved, map_)


def test_the_probability_is_that_of_the_motion():
    config = dataclasses.replace(AFFINE, affine=0.25)
    moved = [(changed(config, seed)[1][1] != NUMBERS).any() for seed in range(200)]
    assert 0.15 < np.mean(moved) < 0.35


def test_large_pictures_are_shrunk_to_what_the_model_sees():
    blocks = np.arange(16 * 8).reshape(16, 8)
    large = np.kron(blocks, np.ones((4, 4), int))
    image, (numbers,) = changed(STILL, 0, large[..., None] / 128, (large,), longest=16)
    np.testing.assert_array_equal(numbers, blocks)
    np.testing.assert_allclose(image[..., 0], blocks / 128, atol=1e-6)


def test_maps_of_large_pictures_move_with_them_and_not_half_a_pixel_aside():
    y, x = np.mgrid[:128, :128] + 0.5
    disc = (np.hypot(y - 64, x - 64) < 24).astype(np.int32)
    config, apart = dataclasses.replace(AFFINE, shift=0.02), []
    for seed in range(40):
        image, (label,) = changed(config, seed, disc[..., None] / 1.0, (disc,), longest=32)
        weights = image[..., 0], label == 1
        where = [[(w.sum(1 - axis) * np.arange(32)).sum() / w.sum() for axis in (0, 1)] for w in weights]
        apart.append(np.subtract(*where))
    # In pixels of which four of the picture make one; taking the pixel under the centre is 0.12 off.
    assert np.abs(np.mean(apart, 0)).max() < 0.03


# Intensity


@pytest.mark.parametrize("seed", SEEDS)
def test_intensity_leaves_the_maps_alone_and_the_picture_between_0_and_1(seed):
    config = dataclasses.replace(NONE, intensity=1.0)
    image, (label, numbers) = changed(config, seed)
    assert label is LABEL
    assert numbers is NUMBERS
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert (image != to_unit(PICTURE)).mean() > 0.5


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_each_change_of_intensity_is_what_it_says(kind):
    unit = np.linspace(0.25, 0.75, 81).reshape(9, 9, 1)
    unit.reshape(-1)[[0, -1]] = 0, 1  # so that 0..1 means the same for every number type
    picture = (unit * (1 if kind == np.float32 else np.iinfo(kind).max)).astype(kind)
    unit = to_unit(picture)

    def only(**options):
        return changed(dataclasses.replace(INTENSITY, **options), 0, picture, ())[0]

    np.testing.assert_allclose(only(), unit, atol=1e-6)
    np.testing.assert_allclose(only(gamma=(2, 2)), unit**2, atol=1e-6)
    np.testing.assert_allclose(only(contrast=(0.5, 0.5)), (unit + unit.mean()) / 2, atol=1e-6)
    offset = np.unique((only(brightness=0.2) - unit)[1:-1].round(5))
    assert offset.size == 1
    assert 0 < abs(offset[0]) <= 0.2
    noise = (only(noise=0.05) - unit).reshape(-1)[1:-1]
    assert 0 < noise.std() < 0.06
    assert abs(noise.mean()) < 3 * noise.std() / 9


def test_noise_is_different_at_every_pixel_and_for_every_seed():
    flat = np.full((20, 20, 1), 0.5, np.float32)
    config = dataclasses.replace(INTENSITY, noise=0.05)
    first, second = (changed(config, seed, flat, ())[0] for seed in (1, 2))
    assert len(np.unique(first)) > 350
    assert abs(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]) < 0.2


def test_an_upright_picture_is_never_mirrored_nor_laid_on_its_side():
    still = dataclasses.replace(AUGMENTATIONS["upright"], affine=0.0, intensity=0.0)
    for seed in SEEDS:
        image, maps = changed(still, seed)
        np.testing.assert_array_equal(image, PICTURE)
        np.testing.assert_array_equal(maps[0], LABEL)
    assert (
        dataclasses.replace(
            AUGMENTATIONS["upright"], flip_horizontal=True, flip_vertical=True, quarter_turns=True
        )
        == FULL
    )


@pytest.mark.parametrize(("dimension", "expected"), [(2, "full"), (3, "upright")])
def test_bodies_stay_upright_and_pictures_need_not(dimension, expected):
    assert usual_augmentation(dimension) == expected


# Chance


@pytest.mark.parametrize("config", [FULL, FLIPS, AFFINE], ids=["full", "flips", "affine"])
def test_the_same_seed_gives_the_same_result(config):
    first, again = changed(config, 5), changed(config, 5)
    np.testing.assert_array_equal(first[0], again[0])
    for a, b in zip(first[1], again[1]):
        np.testing.assert_array_equal(a, b)
    others = [changed(config, seed)[0] for seed in range(6, 16)]
    assert any(o.shape != first[0].shape or (o != first[0]).any() for o in others)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_number_of_draws_does_not_depend_on_options_luck_or_size(seed):
    after = set()
    small, large = np.zeros((4, 4, 1), np.uint8), np.zeros((60, 50, 3), np.uint8)
    for config in (
        FULL,
        FLIPS,
        NONE,
        EXACT_MOVES,
        AFFINE,
        INTENSITY,
        dataclasses.replace(FULL, intensity=1.0),
    ):
        for picture in (small, large):
            rng = np.random.default_rng(seed)
            augment(rng, config, picture, (), longest=32, outside=())
            after.add(rng.integers(1 << 60))
    assert len(after) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_options_do_not_shift_each_others_luck(seed):
    _, (_, moved) = changed(dataclasses.replace(FULL, intensity=0.0), seed)
    np.testing.assert_array_equal(changed(FULL, seed)[1][1], moved)
    some = dataclasses.replace(NONE, intensity=0.5)
    np.testing.assert_allclose(
        changed(dataclasses.replace(STILL, intensity=0.5), seed)[0], changed(some, seed)[0], atol=1e-5
    )
    quiet = dataclasses.replace(some, noise=0.0)
    flipped = changed(dataclasses.replace(quiet, flip_horizontal=True, flip_vertical=True), seed)[0]
    np.testing.assert_allclose(
        np.sort(flipped.reshape(-1)), np.sort(changed(quiet, seed)[0].reshape(-1)), atol=1e-5
    )


def test_missing_maps_stay_missing():
    for seed in SEEDS:
        _, (label, instances) = changed(FULL, seed, maps=(LABEL, None))
        assert label is not None
        assert instances is None


def test_slices_of_a_slab_are_changed_as_one():
    """Three times the same slice stays three times the same, and is what the picture alone would become."""
    image, label = np.stack([PICTURE / 255] * 3).astype(np.float32), np.stack([LABEL] * 3)
    for seed in SEEDS:
        slab, (labels, nothing) = augment_slab(
            np.random.default_rng(seed), AFFINE, image, (label, None), longest=11, outside=OUTSIDE
        )
        one, (alone, _) = augment(
            np.random.default_rng(seed), AFFINE, image[0], (LABEL, None), longest=11, outside=OUTSIDE
        )
        assert nothing is None
        np.testing.assert_allclose(slab, np.stack([one] * 3), atol=1e-6)
        np.testing.assert_array_equal(labels, np.stack([alone] * 3))


def test_slices_of_a_slab_stay_in_order():
    image = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4, 1) / 48
    label, numbers = (image[..., 0] * 48).astype(np.int32), (image[..., 0] * 96).astype(np.int32)
    slab, maps = augment_slab(
        np.random.default_rng(0), NONE, image, (label, numbers), longest=4, outside=OUTSIDE
    )
    np.testing.assert_array_equal(slab, image)
    np.testing.assert_array_equal(maps[0], label)
    np.testing.assert_array_equal(maps[1], numbers)
