"""Resampling there and back, intensities of a run, and records of both."""

import numpy as np
import pytest

from medvfm_jax.images import BadImage
from medvfm_jax.images.preparation import (
    AS_THEY_ARE,
    Preparation,
    of_record,
    resampled,
    resampled_labels,
    restored,
    slices_first,
)
from medvfm_jax.types import IGNORE


def test_a_grid_follows_from_the_sizes_of_voxels():
    run = Preparation(spacing=(2.0, 1.0, 0.5))
    # axes (x, y, z) of 0.5, 1, 4 mm; slices along z, so depth 4 mm, height 1 mm (y), width 0.5 mm (x)
    assert slices_first((0.5, 1.0, 4.0), 2) == (4.0, 1.0, 0.5)
    assert run.grid((5, 20, 30), (0.5, 1.0, 4.0), 2, "a") == (10, 20, 30)
    assert AS_THEY_ARE.grid((5, 20, 30), None, 2, "a") == (5, 20, 30)
    with pytest.raises(BadImage, match="says nothing about the size of its voxels"):
        run.grid((5, 20, 30), None, 2, "scan.npy")
    with pytest.raises(BadImage, match="more than the 2 GiB"):
        Preparation((1e-3,) * 3).grid((100, 100, 100), (1.0, 1.0, 1.0), 2, "scan.nii")


def test_a_ramp_stays_a_ramp_there_and_back():
    """Linear interpolation is exact on linear functions, half a source voxel away from the ends."""
    ramp = np.arange(8, dtype=np.float32)[:, None, None] + 10 * np.arange(6, dtype=np.float32)[:, None]
    volume = np.broadcast_to(ramp, (8, 6, 4))[..., None]
    fine = resampled(volume, (16, 12, 4))
    assert fine.shape == (16, 12, 4, 1)
    centres = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(fine[1:-1, 6, 0, 0] - fine[1, 6, 0, 0], centres[1:-1] - centres[1], atol=1e-5)
    back = np.stack(list(restored(iter(np.moveaxis(fine, -1, 1)), (8, 6, 4), 16)))[:, 0]
    np.testing.assert_allclose(back[1:-1, 1:-1], volume[1:-1, 1:-1, :, 0], atol=1e-4)


def test_a_volume_of_one_intensity_keeps_it_bit_by_bit():
    """Each channel its own; a z-score of rounding would be noise."""
    numbers = np.array([77, 128], np.float32) / np.float32(255)
    found = resampled(np.broadcast_to(numbers, (5, 7, 6, 2)), (11, 20, 13))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.broadcast_to(numbers, (11, 20, 13, 2)))


def test_slices_are_restored_as_they_come():
    taken = []

    def planes():
        for i in range(10):
            taken.append(i)
            yield np.full((2, 3, 3), float(i), np.float32)

    found = restored(planes(), (5, 6, 6), 10)
    assert next(found).shape == (2, 6, 6)
    assert len(taken) < 5
    assert len(list(found)) == 4


def test_labels_keep_their_values_and_sizes():
    labels = np.full((4, 4, 4), 0, np.int8)
    labels[:2], labels[3:, :, 2:] = 7, IGNORE
    fine = resampled_labels(labels, (8, 8, 8))
    np.testing.assert_array_equal(fine, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(resampled_labels(fine, (4, 4, 4)), labels)
    assert fine.dtype == np.int8


def test_intensities_by_range_and_by_z_score():
    array = np.array([-2000.0, -100, 0, 100, 3000], np.float32)[:, None].repeat(2, 1)
    scaled = Preparation(intensity=((-100.0, 100.0), None)).scale(array, ("CT", "MRI"))(array)
    np.testing.assert_allclose(scaled[:, 0], [0, 0, 0.5, 1, 1])
    z = (array[:, 1] - array[:, 1].mean()) / array[:, 1].std()
    np.testing.assert_allclose(scaled[:, 1], (z + 4) / 8, atol=1e-6)


def test_a_record_gives_the_preparation_back():
    for run in (AS_THEY_ARE, Preparation((1.0, 2.0, 3.0)), Preparation(None, ((-5.0, 5.0), None))):
        assert of_record(run.record()) == run
    for bad in (
        {"spacing": [1, 0, 1], "intensity": None},
        {"spacing": [1, 1], "intensity": None},
        {"spacing": None, "intensity": [[1]]},
        {},
    ):
        with pytest.raises((ValueError, TypeError, KeyError, IndexError)):
            of_record(bad)
