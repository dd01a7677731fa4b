import itertools
import math

import numpy as np
import pytest

from medvfm_jax.metrics import BadSpacing, MaskShapeMismatch, surface, surface_distances
from medvfm_jax.metrics.surface import (
    average_distance,
    hausdorff,
    hausdorff_percentile,
    normalised_surface_distance,
)

DEFINITIONS = ("element", "voxel")


def square(top, left, size=8, shape=(40, 40)):
    mask = np.zeros(shape, bool)
    mask[top : top + size, left : left + size] = True
    return mask


def random_blobs(seed, shape):
    return np.random.default_rng(seed).random(shape) > 0.7


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 3.0)])
def test_shifted_square(definition, spacing):
    # Shift by k rows: the farthest boundary point moved straight by k pixels, in mm k * spacing.
    for k in (0, 1, 5):
        d = surface_distances(square(10, 10), square(10 + k, 10), spacing, definition)
        assert hausdorff(d) == pytest.approx(k * spacing[0])
    far = surface_distances(square(0, 0), square(30, 0), spacing, definition)
    assert hausdorff(far) == pytest.approx(30 * spacing[0])
    near_side = 30 - 7 if definition == "voxel" else 30 - 8
    assert far.from_reference.min() == pytest.approx(near_side * spacing[0])


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_growing_cube_has_every_distance_equal_to_the_growth(definition):
    inner, outer = np.zeros((2, 20, 20, 20), bool)
    inner[6:14, 6:14, 6:14] = True
    outer[4:16, 4:16, 4:16] = True
    d = surface_distances(inner, outer, (1, 1, 1), definition)
    np.testing.assert_allclose(d.from_reference, 2.0)
    assert d.from_prediction.max() == pytest.approx(math.sqrt(12))
    assert normalised_surface_distance(d, 1.99) == 0.0
    assert normalised_surface_distance(d, 4.0) == 1.0
    assert 2.0 < average_distance(d) < math.sqrt(12)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("shape", [(13, 17), (7, 9, 8)])
def test_symmetry_identity_translation_and_scale(definition, shape):
    a, b = random_blobs(0, shape), random_blobs(1, shape)
    spacing = np.linspace(0.7, 1.9, len(shape))
    scores = (
        hausdorff,
        hausdorff_percentile,
        average_distance,
        lambda d: normalised_surface_distance(d, 1.0),
    )
    forth, back = surface_distances(a, b, spacing, definition), surface_distances(b, a, spacing, definition)
    moved = surface_distances(np.pad(a, 3), np.pad(b, 3), spacing, definition)
    for score in scores:
        assert score(forth) == pytest.approx(score(back))
        assert score(forth) == pytest.approx(score(moved))
    double = surface_distances(a, b, 2 * spacing, definition)
    assert hausdorff_percentile(double) == pytest.approx(2 * hausdorff_percentile(forth))
    assert average_distance(double) == pytest.approx(2 * average_distance(forth))
    assert normalised_surface_distance(double, 2.0) == pytest.approx(normalised_surface_distance(forth, 1.0))
    same = surface_distances(a, a, spacing, definition)
    assert hausdorff(same) == average_distance(same) == 0.0
    assert normalised_surface_distance(same, 0.0) == 1.0


def test_brute_force_distances():
    a, b = random_blobs(2, (6, 7, 5)), random_blobs(3, (6, 7, 5))
    spacing = np.array([0.8, 1.1, 2.5])

    def border(mask):
        padded = np.pad(mask, 1)
        inside = padded.copy()
        for axis, step in itertools.product(range(3), (1, -1)):
            inside &= np.roll(padded, step, axis)
        return np.argwhere(padded & ~inside) * spacing

    pairwise = np.linalg.norm(border(a)[:, None] - border(b)[None], axis=-1)
    d = surface_distances(a, b, spacing, "voxel")
    np.testing.assert_allclose(d.from_reference, pairwise.min(1))
    np.testing.assert_allclose(d.from_prediction, pairwise.min(0))
    pooled = np.concatenate([pairwise.min(0), pairwise.min(1)])
    assert hausdorff_percentile(d, 90, pooled=True) == pytest.approx(np.percentile(pooled, 90))
    assert hausdorff_percentile(d, 90) == pytest.approx(
        max(np.percentile(pairwise.min(0), 90), np.percentile(pairwise.min(1), 90))
    )


def test_elements_weigh_by_their_length_in_mm():
    # Pixels of 4 mm by 1 mm, shift along the thin axis: two sides of 7 * 4 mm move by 1 mm, two of 7 * 1
    # mm stay in
    # line; of the 4 corners (√17 / 2 mm each) two end on the other square's side and two stick out by 1 mm.
    d = surface_distances(square(10, 10), square(10, 11), (4.0, 1.0), "element")
    corner = math.sqrt(17) / 2
    assert d.reference_weight.sum() == pytest.approx(2 * 28 + 2 * 7 + 4 * corner)
    assert average_distance(d) == pytest.approx((2 * 28 + 2 * corner) / (2 * 28 + 2 * 7 + 4 * corner))
    assert hausdorff_percentile(d, 50) == 1.0
    assert hausdorff_percentile(d, 100 * (14 + 2 * corner) / (70 + 4 * corner) - 0.1) == 0.0


def test_tolerance_is_inclusive_whatever_the_rounding():
    d = surface_distances(square(10, 10), square(13, 10), (0.7, 0.7))
    assert normalised_surface_distance(d, 2.1) == 1.0
    assert normalised_surface_distance(d, 2.09) < 1.0
    assert normalised_surface_distance(d, 2.1 * (1 - 1e-6)) < 1.0  # what is a millionth beyond is beyond
    d = surface_distances(square(10, 10), square(13, 10), (0.1, 0.1))
    assert normalised_surface_distance(d, 0.3) == 1.0  # three steps of 0.1 are 0.30000000000000004


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_empty_masks(definition):
    nothing, something = np.zeros((9, 9), bool), square(2, 2, 3, (9, 9))
    for a, b in ((nothing, something), (something, nothing)):
        d = surface_distances(a, b, None, definition)
        assert hausdorff(d) == hausdorff_percentile(d) == average_distance(d) == math.inf
        assert normalised_surface_distance(d, 5.0) == 0.0
    both = surface_distances(nothing, nothing, None, definition)
    assert math.isnan(hausdorff(both))
    assert math.isnan(hausdorff_percentile(both))
    assert math.isnan(average_distance(both))
    assert math.isnan(normalised_surface_distance(both, 1.0))


def test_bad_input_is_named():
    with pytest.raises(BadSpacing, match="spacing"):
        surface_distances(square(0, 0), square(0, 0), (1.0,))
    with pytest.raises(BadSpacing, match="spacing"):
        surface_distances(square(0, 0), square(0, 0), (1.0, 0.0))
    with pytest.raises(BadSpacing, match="1-D"):
        surface_distances(np.ones(3), np.ones(3))
    with pytest.raises(MaskShapeMismatch):
        surface_distances(np.ones((3, 3)), np.ones((3, 4)))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.8)])
@pytest.mark.parametrize(
    "targets",
    [0.2, 0.02, 1],  # of all pixels, or this many: found by steps, in the tree, or by transforming the box
    ids=["dense", "sparse", "one"],
)
@pytest.mark.parametrize("sources", [0.3, 5], ids=["many", "few"])
def test_every_way_to_find_the_nearest_is_exact(targets, sources, spacing):
    shape = (14, 16, 18)
    rng = np.random.default_rng(0)

    def drawn(amount):
        mask = np.zeros(shape, bool)
        count = amount if amount >= 1 else int(amount * mask.size)
        mask.flat[rng.choice(mask.size, count, replace=False)] = True
        return mask

    from_, to = drawn(sources), drawn(targets)
    apart = (np.argwhere(from_)[:, None] - np.argwhere(to)[None]) * np.array(spacing)
    expected = np.sqrt((apart**2).sum(-1)).min(axis=1)
    np.testing.assert_allclose(surface._distances(from_, to, spacing), expected, rtol=1e-12)
