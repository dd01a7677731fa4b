"""Statistics of volumes whose numbers are known."""

import nibabel
import numpy as np
import pytest

from medvfm_jax.data import BadCase, open_dataset
from medvfm_jax.data.volume_statistics import volume_statistics


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "numTraining": 3, '
        '"file_ending": ".nii.gz"}'
    )
    for i, thick in enumerate((2.0, 3.0, 7.0)):
        affine = np.diag([0.5, 1.0, thick, 1.0])
        label = np.zeros((6, 8, 4), np.uint8)
        label[2, 3:5, 1] = 1
        image = np.full(label.shape, -1000, np.int16)
        image[2, 3:5, 1] = (100 * i, 100 * i + 50)
        for kind, name, array in (("images", f"c{i}_0000", image), ("labels", f"c{i}", label)):
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{kind}Tr" / f"{name}.nii.gz")
    return tmp_path


def test_the_labelled_voxels_and_the_median_spacing_count(folder):
    found = volume_statistics(open_dataset(folder), ["c0", "c1", "c2"])
    assert found.spacing == (3.0, 1.0, 0.5)  # depth, height, width
    values = np.array([0, 50, 100, 150, 200, 250.0])
    (ends,) = found.ranges
    assert ends == pytest.approx(tuple(np.percentile(values, [0.5, 99.5])))


def test_nothing_labelled_is_a_sentence(folder):
    path = folder / "labelsTr" / "c0.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    with pytest.raises(BadCase, match="has a labelled voxel"):
        volume_statistics(open_dataset(folder), ["c0"])
