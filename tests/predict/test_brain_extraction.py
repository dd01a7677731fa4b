"""The box around a brain, and whole volumes through two stand-ins for the networks."""

import contextlib

import nibabel as nib
import numpy as np
import pytest

from medvfm_jax.images import read
from medvfm_jax.images.image import BadImage
from medvfm_jax.predict import brain_extraction
from medvfm_jax.predict.brain_extraction import BrainExtractor, box_around
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.settings.records import BadConfig


def test_the_box_has_a_tenth_of_its_size_around_it():
    mask = np.zeros((10, 10, 10), bool)
    mask[2:8, 3:7, 0:10] = True
    assert box_around(mask, (20, 100, 10)) == (slice(3, 17), slice(26, 74), slice(0, 10))


def test_planes_with_little_in_them_are_outside():
    mask = np.zeros((10, 10, 10), bool)
    mask[4:6, 2:8, 2:8] = True
    mask[0, 0, 0] = mask[0, 0, 1] = True  # exactly a fiftieth of the plane is not enough
    assert box_around(mask, (10, 10, 10))[0] == slice(4, 6)
    with pytest.raises(BadImage, match="too small"):
        box_around(np.zeros((10, 10, 10), bool), (10, 10, 10))


def test_stretching_takes_the_nearest_centre():
    row = np.arange(3).reshape(3, 1, 1)
    assert brain_extraction._stretched(row, (6, 1, 1)).ravel().tolist() == [0, 0, 1, 1, 2, 2]
    assert brain_extraction._stretched(np.arange(6).reshape(6, 1, 1), (3, 1, 1)).ravel().tolist() == [1, 3, 5]


def test_intensities_have_the_mean_and_deviation_of_training():
    volume = np.random.default_rng(0).uniform(0, 100, (8, 8, 8)).astype(np.float32)
    seen = brain_extraction._normalised(volume, 5.0, 95.0)
    np.testing.assert_allclose([seen.mean(), seen.std(ddof=1)], [0.449, 0.226], rtol=1e-4)
    np.testing.assert_allclose(seen[volume < 5].std(), 0, atol=1e-6)


class Bright:
    """A network to which the brain is what is bright."""

    def __init__(self, side):
        self.window = (side,) * 3

    def __call__(self, volume):
        assert volume.shape == self.window
        return volume > volume.mean()


def head(path, affine):
    """A bright box with a hole in it, and a bright speck elsewhere."""
    array = np.zeros((24, 20, 16), np.float32)
    array[6:18, 5:15, 4:12] = 100
    array[11, 10, 8] = 0
    array[1, 1, 1] = 100
    nib.save(nib.Nifti1Image(array, affine), path)
    return read(path)


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1, 1, 2, 1]), np.eye(4)[[1, 2, 0, 3]]])
def test_the_brain_is_the_largest_part_without_holes_on_the_volumes_own_grid(tmp_path, affine):
    image = head(tmp_path / "head.nii.gz", affine)
    extractor = BrainExtractor.__new__(BrainExtractor)
    extractor._localiser, extractor._network = Bright(16), Bright(32)
    labels = extractor(image)
    expected = np.zeros((24, 20, 16), np.uint8)
    expected[6:18, 5:15, 4:12] = 1
    assert labels.shape == image.grid
    assert (labels != expected).mean() < 0.02  # the nearest voxels of a stretched crop
    assert labels[11, 10, 8] == 1
    assert labels[1, 1, 1] == 0


def test_a_volume_without_contrast_is_refused(tmp_path):
    path = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), path)
    extractor = BrainExtractor.__new__(BrainExtractor)
    extractor._localiser = extractor._network = Bright(8)
    with pytest.raises(BadImage, match="one intensity"):
        extractor(read(path))


def test_a_segmenter_asks_both_networks(tmp_path):
    segmenter = load_segmenter("deepbet-tiny-test")
    image = head(tmp_path / "head.nii.gz", np.eye(4))
    with contextlib.suppress(BadImage):  # its weights are made up: it may find nothing
        labels = segmenter(image).labels
        assert labels.shape == image.grid
        assert set(np.unique(labels)) <= {0, 1}
    assert segmenter.labels == {0: "background", 1: "brain"}
    assert segmenter.filled_up(image) is None


def test_what_makes_no_sense_is_refused():
    with pytest.raises(BadConfig, match="leave out --overlap"):
        load_segmenter("deepbet-tiny-test", overlap=0.5)
    with pytest.raises(BadConfig, match="adapt it"):
        load_segmenter("merlin-tiny-test")
