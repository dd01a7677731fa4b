import numpy as np
import pytest

from medvfm_jax.images.intensity import (
    UnknownWindow,
    VolumeScale,
    minmax,
    percentiles,
    to_unit,
    volume_to_unit,
    window,
)


def test_the_abdomen_window_goes_from_minus_160_to_240():
    np.testing.assert_allclose(window(np.array([-1000, -160, 40, 240, 3000]), "abdomen"), [0, 0, 0.5, 1, 1])
    with pytest.raises(UnknownWindow, match="lung"):
        window(np.zeros(3), "spleen")


def test_percentiles_leave_air_out():
    values = np.concatenate([np.zeros(10_000), np.arange(1, 1001)])
    scaled = percentiles(values, 10, 90)
    low, high = np.percentile(np.arange(1, 1001), [10, 90])
    np.testing.assert_allclose(scaled, np.clip((values - low) / (high - low), 0, 1), atol=1e-6)
    assert percentiles(values, 10, 90, nonzero=False).max() == 1


@pytest.mark.parametrize("value", [0, 5, -3])
def test_constants_become_zero(value):
    array = np.full((4, 4), value, np.int16)
    assert (percentiles(array) == 0).all()
    assert (minmax(array) == 0).all()


def test_a_constant_has_no_z_scores():
    """The mean of many 0.1 is not 0.1, and their deviation is not 0."""
    array = np.full((7, 9, 11, 1), 0.1)
    assert array.std() > 0
    assert (VolumeScale(array, intensity=[None])(array) == 0).all()


def test_nearly_constant_images_keep_what_differs():
    array = np.zeros((100, 100), np.uint16) + 10
    array[0, 0] = 500
    assert percentiles(array)[0, 0] == 1


def test_large_offsets_keep_their_detail():
    array = (np.arange(16) + 2**31 - 100).astype(np.int64)
    np.testing.assert_allclose(minmax(array), np.arange(16) / 15, atol=1e-6)


def test_unit_range_of_each_number_type():
    np.testing.assert_allclose(to_unit(np.array([0, 128, 255], np.uint8)), [0, 128 / 255, 1])
    np.testing.assert_array_equal(to_unit(np.array([True, False])), [1, 0])
    dark = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_array_equal(to_unit(dark), dark)  # not stretched: it is a fraction already
    np.testing.assert_allclose(to_unit(np.array([1000, 1500, 2000], np.uint16)), [0, 0.5, 1])
    np.testing.assert_allclose(to_unit(np.array([-1.0, 0, 1])), [0, 0.5, 1])


def test_ct_channels_use_a_window_and_others_percentiles():
    array = np.random.default_rng(0).normal(0, 500, (4, 5, 6, 2)).astype(np.float32)
    unit = volume_to_unit(array, ("CT", "T1"))
    np.testing.assert_array_equal(unit[..., 0], window(array[..., 0], "abdomen"))
    np.testing.assert_array_equal(unit[..., 1], percentiles(array[..., 1]))


def test_a_part_of_a_volume_has_the_numbers_it_has_in_the_whole():
    """Two channels, the second Hounsfield units: scaled by slice, by window, by voxel, bit for bit."""
    array = np.random.default_rng(0).normal(100, 300, (5, 6, 7, 2)).astype(np.int16)
    whole, scale = volume_to_unit(array, ("MRI", "CT")), VolumeScale(array, ("MRI", "CT"))
    np.testing.assert_array_equal(whole[..., 0], percentiles(array[..., 0]))
    np.testing.assert_array_equal(whole[..., 1], window(array[..., 1], "abdomen"))
    for part in (np.s_[2], np.s_[:, 3], np.s_[1:3, 2:, :4], np.s_[4, 5, 6]):
        np.testing.assert_array_equal(scale(array[part]), whole[part])
    assert not VolumeScale(np.full((2, 2, 2, 1), 7))(np.full((1, 1), 7)).any()
