import gzip
import logging

import nibabel
import numpy as np
import pytest

from medvfm_jax.images import BadImage, read
from medvfm_jax.images.image import NO_SIZE, SLANTED, TWO_FORMS

ARRAY = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)


def saved(path, array=ARRAY, affine=None, **fields):
    volume = nibabel.Nifti1Image(array, np.diag([2.0, 2, 3, 1]) if affine is None else affine)
    for name, value in fields.items():
        volume.header[name] = value
    nibabel.save(volume, path)
    return path


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def emit(self, record):
        self.records.append(record)


def with_scale(path, slope, inter):
    saved(path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(("slope", "inter"), [(2.0, -1024.0), (0.1, 0.3), (1.0, 5.0), (1e-7, 1e6)])
def test_scaled_values_are_those_of_nibabel(tmp_path, slope, inter):
    path = with_scale(tmp_path / "a.nii", slope, inter)
    expected = nibabel.load(path).get_fdata(dtype=np.float32)
    image = read(path)
    np.testing.assert_array_equal(image.array[..., 0], expected)
    assert image.array.dtype == np.float32


@pytest.mark.parametrize("kind", [np.int16, ">i2", np.float32, ">f8", np.uint8])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image_class", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_layout_gives_the_same_numbers(tmp_path, kind, suffix, image_class):
    array = np.abs(ARRAY // 16).astype(kind)
    header = image_class.header_class(endianness=">" if str(kind).startswith(">") else "<")
    header.set_data_dtype(array.dtype)
    nibabel.save(image_class(array, np.eye(4), header), tmp_path / f"a{suffix}")
    image = read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(image.array[..., 0], array)
    assert image.array.dtype == array.dtype.newbyteorder("=")


def test_the_sform_counts_and_a_qform_that_disagrees_is_said(tmp_path):
    volume = nibabel.Nifti1Image(ARRAY, np.diag([2.0, 2, 3, 1]))
    volume.set_qform(np.diag([2.0, 2, 3, 1]), code=1)
    volume.set_sform(np.diag([2.0, 2, 3, 1]), code=1)
    nibabel.save(volume, tmp_path / "same.nii")
    assert read(tmp_path / "same.nii").notes == ()
    moved = np.diag([2.0, 2, 3, 1])
    moved[0, 3] = 0.5
    volume.set_qform(moved, code=1)
    nibabel.save(volume, tmp_path / "other.nii")
    image = read(tmp_path / "other.nii")
    assert image.notes == (TWO_FORMS,)
    np.testing.assert_allclose(image.affine, np.diag([2.0, 2, 3, 1]))


def test_a_slanted_sform_is_said(tmp_path):
    affine = np.diag([1.0, 1, 3, 1])
    affine[1, 2] = 0.46
    volume = nibabel.Nifti1Image(ARRAY, None)
    volume.set_sform(affine, code=1)
    volume.set_qform(None, code=0)
    nibabel.save(volume, tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").notes == (SLANTED,)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_voxels_without_a_size_have_no_spacing_and_this_is_said(tmp_path, axis, monkeypatch):
    path = saved(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[76 + 4 * axis : 80 + 4 * axis] = bytes(4)  # pixdim
    content[252:256] = bytes(4)  # no qform, no sform
    path.write_bytes(bytes(content))
    logged = []
    monkeypatch.setattr(logging.getLogger(), "handlers", [Kept(logged)])
    image = read(path)
    assert (image.spacing, image.notes) == (None, (NO_SIZE,))
    assert image.affine[axis - 1, axis - 1] in (1.0, -1.0)
    assert logged == []  # what nibabel repairs is not printed beside the note
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # the sform says it
    path.write_bytes(bytes(content))
    assert read(path).spacing == (2.0, 2.0, 3.0)


def test_a_file_too_short_for_its_header_is_refused_before_it_is_read(tmp_path):
    path = saved(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([600, 600, 600], "<i2").tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(BadImage, match="promises 432,000,352 bytes; the file has"):
        read(path)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(bytes(content)))  # not even the best compression gives so much
    with pytest.raises(BadImage, match="promises"):
        read(packed)


def test_voxels_in_another_file_and_far_offsets_are_refused(tmp_path):
    pair = nibabel.Nifti1Pair(ARRAY, np.eye(4))
    nibabel.save(pair, tmp_path / "a.img")
    (tmp_path / "a.hdr").rename(tmp_path / "b.nii")
    with pytest.raises(BadImage, match=r"\.img"):
        read(tmp_path / "b.nii")
    path = saved(tmp_path / "c.nii")
    content = bytearray(path.read_bytes())
    content[108:112] = np.array([3e9], "<f4").tobytes()
    path.write_bytes(bytes(content))
    with pytest.raises(BadImage, match=r"at byte 3,000,000,000"):
        read(path)
