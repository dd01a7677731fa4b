import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvfm_jax.images import BadImage, Image
from medvfm_jax.images.geometry import (
    displacement,
    from_canonical,
    mismatch,
    onto_grid,
    resample,
    slanted,
    slice_axis,
    spacing_of,
    to_canonical,
)


def volume(array, affine) -> Image:
    array = array if array.ndim == 4 else array[..., None]
    return Image(array, spacing_of(affine), np.asarray(affine, float))


def turned(order, signs, spacing=(1.0, 2.0, 3.0), origin=(5.0, -6.0, 7.0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (direction, sign) in enumerate(zip(order, signs)):
        affine[direction, axis] = sign * spacing[axis]
    affine[:3, 3] = origin
    return affine


def test_spacing_of_an_oblique_affine():
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 0.7, 5.0])
    assert spacing_of(affine) == pytest.approx((0.5, 0.7, 5.0))


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 5), 2), ((5, 1, 1), 0), ((1, 4, 1), 1), ((1, 1, 1), 2), ((1.0, 1.0, 0.99), 2), ((3, 3, 1), 1)],
)
def test_the_axis_to_slice_along(spacing, axis):
    assert slice_axis(Image(np.zeros((4, 5, 6, 1)), spacing, np.eye(4))) == axis


def test_differences_are_named():
    a = volume(np.zeros((4, 5, 6)), np.diag([1, 1, 2, 1]))

    def what(**changes):
        return mismatch(a, a._replace(**changes)).what

    assert what() == ""
    assert "shape" in what(array=np.zeros((4, 5, 7, 1)))
    assert "spacing" in what(affine=np.diag([1, 1, 2.1, 1]))
    shifted = a.affine.copy()
    shifted[0, 3] += 0.5
    assert "position" in what(affine=shifted)
    assert "position or direction" in what(affine=np.diag([-1.0, 1, 2, 1]))


@pytest.mark.parametrize(
    ("step", "what", "rounded"), [(0.0, 0, 0), (0.0023, 0, 1), (0.035, 0, 1), (0.05, 1, 0)]
)
def test_what_rewriting_headers_does_is_no_mismatch_but_is_counted(step, what, rounded):
    """0.8 mm voxels: 0.0008 mm is exact, up to 0.04 mm is rounding, more is refused."""
    a = volume(np.zeros((4, 5, 6)), np.diag([0.8, 0.8, 3, 1]))
    moved = a.affine.copy()
    moved[1, 3] += step
    found = mismatch(a._replace(affine=moved), a)
    assert (bool(found.what), found.rounded) == (what, rounded)
    assert found.distance == pytest.approx(step)


def test_the_displacement_is_that_of_the_farthest_corner():
    """A turn by 0.01 about the first corner of 10 x 20 x 5 voxels: 0.01 times the distance to the last one."""
    turned = np.array(
        [[np.cos(0.01), -np.sin(0.01), 0, 0], [np.sin(0.01), np.cos(0.01), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    expected = 2 * np.sin(0.005) * np.hypot(9.5, 19.5)
    assert displacement((10, 20, 5), np.eye(4), turned) == pytest.approx(expected)


def test_a_slant_is_told_from_a_turn():
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert not slanted(turned @ np.diag([0.5, 0.7, 3, 1]), (10, 10, 10))
    tilted = np.diag([0.5, 0.5, 3, 1.0])
    tilted[1, 2] = 0.46
    assert slanted(tilted, (10, 10, 10))
    tilted[1, 2] = 1e-4  # 0.001 mm from the first slice to the last
    assert not slanted(tilted, (10, 10, 10))


@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([1, -1])] * 3))
@settings(max_examples=48, deadline=None)
def test_canonical_orientation_there_and_back(order, signs):
    array = np.random.default_rng(0).integers(0, 9, (3, 4, 5))
    image = volume(array, turned(order, signs))
    canonical = to_canonical(image)
    assert (np.diag(canonical.affine)[:3] > 0).all()
    np.testing.assert_array_equal(from_canonical(canonical.array, image), image.array)
    # a voxel keeps its place in the patient
    index = np.argwhere(canonical.array[..., 0] == canonical.array.max())[0]
    position = canonical.affine @ [*index, 1]
    back = np.rint(np.linalg.inv(image.affine) @ position).astype(int)[:3]
    assert image.array[tuple(back)][0] == canonical.array.max()


def test_resampling_keeps_positions():
    """A linear function of the position in mm is still that function afterwards, away from the border."""
    affine = turned((1, 0, 2), (1, -1, 1), (1.0, 2.0, 3.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 16, 14)), indexing="ij"), -1)
    image = volume((index @ affine[:3, :3].T + affine[:3, 3]) @ [0.3, -0.2, 0.1], affine)
    new = resample(image, (1.5, 1.5, 2.0))
    assert new.spacing == (1.5, 1.5, 2.0)
    assert spacing_of(new.affine) == pytest.approx((1.5, 1.5, 2.0))
    assert new.grid == (16, 21, 21)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in new.grid), indexing="ij"), -1)
    expected = (index @ new.affine[:3, :3].T + new.affine[:3, 3]) @ [0.3, -0.2, 0.1]
    middle = (slice(5, -5),) * 3
    np.testing.assert_allclose(new.array[..., 0][middle], expected[middle], atol=0.02)


def test_resampled_labels_stay_labels_and_keep_their_volume():
    labels = np.zeros((20, 20, 10), np.int32)
    labels[5:15, 5:15, 2:8] = 7
    image = volume(labels, np.diag([1, 1, 2, 1]))
    new = resample(image, (0.5, 0.5, 1.0), labels=True)
    assert set(np.unique(new.array)) == {0, 7}
    assert (new.array == 7).sum() * 0.25 == pytest.approx((labels == 7).sum() * 2.0)
    back = onto_grid(new, image, labels=True)
    np.testing.assert_array_equal(back.array, image.array)


def test_what_cannot_be_resampled():
    with pytest.raises(BadImage, match="spacing"):
        resample(Image(np.zeros((4, 4, 1))), (1, 1, 1))
    with pytest.raises(BadImage, match="not positive"):
        resample(volume(np.zeros((4, 4, 4)), np.eye(4)), (1, 0, 1))
    with pytest.raises(BadImage, match="affine"):
        onto_grid(Image(np.zeros((4, 4, 1))), volume(np.zeros((4, 4, 4)), np.eye(4)))
