import numpy as np
import pytest

from medvfm_jax.images import Image
from medvfm_jax.images.geometry import (
    displacement,
    mismatch,
    slanted,
    slice_axis,
    spacing_of,
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
