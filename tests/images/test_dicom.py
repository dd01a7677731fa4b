import builtins

import numpy as np
import pytest

from medvfm_jax.images import BadImage, read


@pytest.fixture
def pydicom():
    return pytest.importorskip("pydicom")


def save(pydicom, path, pixels, position=(0, 0, 0), direction=(1, 0, 0, 0, 1, 0), series="1.2.3", **extra):
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.SeriesInstanceUID, file.Modality = series, "CT"
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.PixelSpacing, file.ImagePositionPatient = [0.5, 0.7], list(position)
    file.ImageOrientationPatient = list(direction)
    file.PixelData = pixels.astype("<i2").tobytes()
    for name, value in extra.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)


def series(pydicom, folder, depth=5, step=2.5, **extra):
    folder.mkdir()
    stack = np.random.default_rng(0).integers(0, 2000, (depth, 6, 8))  # slice, row, column
    for k in np.random.default_rng(1).permutation(depth):  # file names say nothing about the order
        save(pydicom, folder / f"f{(k * 7) % 10}.dcm", stack[k], (10, 20, 30 + step * k), **extra)
    return stack


def test_a_series_becomes_a_volume_in_nifti_space(tmp_path, pydicom):
    stack = series(pydicom, tmp_path / "s", RescaleSlope=2, RescaleIntercept=-1024)
    image = read(tmp_path / "s")
    assert image.grid == (8, 6, 5)
    np.testing.assert_allclose(image.array[..., 0], stack.transpose(2, 1, 0) * 2 - 1024)
    assert image.spacing == pytest.approx((0.7, 0.5, 2.5))
    # LPS (10, 20, 30) is RAS (-10, -20, 30); columns run to the left, rows to the back
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [-10.7, -21, 37.5, 1])


def test_one_file_is_a_picture_and_monochrome1_is_inverted(tmp_path, pydicom):
    pixels = np.arange(48).reshape(6, 8)
    save(pydicom, tmp_path / "a.dcm", pixels)
    image = read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image.array[..., 0], pixels)
    assert image.spacing == (0.5, 0.7)
    save(pydicom, tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(tmp_path / "b.dcm").array[..., 0], 47 - pixels)


def test_a_missing_slice_a_second_series_and_a_turned_slice_are_refused(tmp_path, pydicom):
    pixels = np.zeros((6, 8), int)
    for name, changes, words in [
        ("gap", [{"position": (0, 0, z)} for z in (0, 1, 3)], "apart"),
        ("twice", [{"position": (0, 0, z)} for z in (0, 1, 1)], "apart"),
        ("two", [{"position": (0, 0, z), "series": f"1.{z}"} for z in (1, 2)], "2 DICOM series"),
        ("turned", [{}, {"position": (0, 0, 1), "direction": (0, 1, 0, 1, 0, 0)}], "orientation"),
    ]:
        (tmp_path / name).mkdir()
        for i, change in enumerate(changes):
            save(pydicom, tmp_path / name / f"{i}.dcm", pixels, **change)
        with pytest.raises(BadImage, match=words):
            read(tmp_path / name)


def test_damaged_files_and_empty_folders(tmp_path, pydicom):
    save(pydicom, tmp_path / "a.dcm", np.zeros((60, 80), int))
    content = (tmp_path / "a.dcm").read_bytes()
    for damaged in (b"", b"no dicom", content[: len(content) // 2]):
        (tmp_path / "b.dcm").write_bytes(damaged)
        with pytest.raises(BadImage, match=r"b\.dcm"):
            read(tmp_path / "b.dcm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImage, match="no DICOM"):
        read(tmp_path / "empty")
    with pytest.raises(BadImage, match="cannot be read"):
        read(tmp_path / "c.dcm")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pydicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadImage, match=r"medvfm-jax\[dicom\]"):
        read(tmp_path)
