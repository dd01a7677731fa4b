import os

import nibabel
import numpy as np
import pytest

from medvfm_jax.images import BadImage, Image, read, read_labels, write_mask
from medvfm_jax.local_paths import BadPath

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("highest", [1, 255, 40000])
def test_picture_masks_come_back(tmp_path, suffix, highest):
    labels = RNG.integers(0, highest + 1, (9, 7)).astype(np.int32)
    path = tmp_path / "deeper" / f"m{suffix}"
    write_mask(path, labels, Image(np.zeros((9, 7, 3))))
    np.testing.assert_array_equal(read_labels(path).array[..., 0], labels)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volume_masks_lie_on_the_grid_of_the_image(tmp_path, suffix):
    angle = 0.2
    affine = np.eye(4)
    affine[:2, :2] = 1.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[:3, 3] = [10, -20, 30]
    nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(4, 5, 6)), affine), tmp_path / "image.nii")
    image = read(tmp_path / "image.nii")
    labels = RNG.integers(0, 4, (4, 5, 6))
    write_mask(tmp_path / f"m{suffix}", labels, image)
    stored = nibabel.load(tmp_path / f"m{suffix}")
    np.testing.assert_array_equal(np.asarray(stored.dataobj), labels)
    np.testing.assert_allclose(stored.affine, affine, atol=1e-6)
    np.testing.assert_allclose(stored.get_qform(), affine, atol=1e-5)
    assert stored.get_data_dtype() == np.uint8


def test_the_same_mask_gives_the_same_bytes(tmp_path):
    like = Image(np.zeros((4, 5, 6, 1)), (1.0, 1.0, 1.0), np.eye(4))
    labels = RNG.integers(0, 4, (4, 5, 6))
    write_mask(tmp_path / "a.nii.gz", labels, like)
    write_mask(tmp_path / "b.nii.gz", labels, like)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("value", "kind"), [(255, np.uint8), (-1, np.int16), (300, np.int16), (70000, np.int32)]
)
def test_the_smallest_type_that_fits(tmp_path, value, kind):
    labels = np.zeros((4, 5, 6), np.int64)
    labels[1, 2, 3] = value
    write_mask(tmp_path / "m.nii", labels, Image(np.zeros((4, 5, 6, 1)), (1.0, 1.0, 1.0), np.eye(4)))
    stored = nibabel.load(tmp_path / "m.nii")
    assert stored.get_data_dtype() == kind
    np.testing.assert_array_equal(np.asarray(stored.dataobj), labels)


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("m.png", np.zeros((9, 8), int), "grid"),
        ("m.png", np.zeros((9, 7)), "whole numbers"),
        ("m.png", np.full((9, 7), 70000), "65535"),
        ("m.png", np.full((9, 7), -1), "65535"),
        ("m.jpg", np.zeros((9, 7), int), "written as"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path, name, labels, words):
    with pytest.raises(BadImage, match=words):
        write_mask(tmp_path / name, labels, Image(np.zeros((9, 7, 3))))
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_is_fine_as_long_as_the_file_system_takes_it(tmp_path):
    like = Image(np.zeros((9, 7, 3)))
    write_mask(tmp_path / f"{'m' * 250}.png", np.ones((9, 7), int), like)
    assert [len(p.name) for p in tmp_path.iterdir()] == [254]
    with pytest.raises(BadPath, match="longer than file systems allow"):
        write_mask(tmp_path / f"{'m' * 300}.png", np.ones((9, 7), int), like)
    with pytest.raises(BadImage, match="too long"):
        read(tmp_path / f"{'m' * 300}.png")
    with pytest.raises(BadImage, match="cannot be read"):
        read(tmp_path / "a\0b.png")


def test_a_volume_without_an_affine_keeps_its_spacing(tmp_path):
    like = Image(np.zeros((4, 5, 6, 1)), (0.5, 0.25, 2.0))
    write_mask(tmp_path / "m.nii", np.ones((4, 5, 6), int), like)
    np.testing.assert_allclose(nibabel.load(tmp_path / "m.nii").affine, np.diag([0.5, 0.25, 2, 1]))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    like, path = Image(np.zeros((9, 7, 3))), tmp_path / "m.png"
    write_mask(path, np.ones((9, 7), int), like)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadImage, match="No space left"):
        write_mask(path, np.zeros((9, 7), int), like)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
