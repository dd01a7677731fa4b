import numpy as np
import pytest

from medvfm_jax.images import BadImage, Image, plane, slices, stack


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_slices_stacked_are_the_volume(axis):
    array = np.random.default_rng(0).integers(0, 9, (4, 5, 6, 1))
    image = Image(array, (1.0, 3.0, 1.0), np.diag([1.0, 3, 1, 1]))
    cut = [s[..., 0] for s in slices(image, axis)]
    assert len(cut) == array.shape[1 if axis is None else axis]
    np.testing.assert_array_equal(stack(cut, image, axis), array[..., 0])


def test_width_is_the_first_axis_and_down_the_second():
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    np.testing.assert_array_equal(plane(array, 2, 3), array[:, :, 3].T)
    assert plane(np.zeros((4, 5, 6, 2)), 0, 1).shape == (6, 5, 2)


def test_wrong_number_or_size_is_refused():
    image = Image(np.zeros((4, 5, 6, 1)), (1.0, 1.0, 1.0), np.eye(4))
    with pytest.raises(BadImage, match="5 slices"):
        stack([np.zeros((5, 4))] * 5, image)
    with pytest.raises(BadImage, match="shape"):
        stack([np.zeros((4, 5))] * 6, image)
