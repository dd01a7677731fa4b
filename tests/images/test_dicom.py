import builtins
import struct

import nibabel
import numpy as np
import pytest

from medvfm_jax.images import BadImage, read, write_mask
from medvfm_jax.images.image import LEFT_OUT, SLANTED
from medvfm_jax.images.reading import holds_volume
from tests.images.dicom_files import enhanced, save, series


@pytest.fixture(autouse=True)
def pydicom():
    return pytest.importorskip("pydicom")


def test_a_series_becomes_a_volume_in_nifti_space(tmp_path):
    stack = series(tmp_path / "s", RescaleSlope=2, RescaleIntercept=-1024)
    image = read(tmp_path / "s")
    assert image.grid == (8, 6, 5)
    np.testing.assert_allclose(image.array[..., 0], stack.transpose(2, 1, 0) * 2 - 1024)
    assert image.spacing == pytest.approx((0.7, 0.5, 2.5))
    # LPS (10, 20, 30) is RAS (-10, -20, 30); columns run to the left, rows to the back
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [-10.7, -21, 37.5, 1])


def test_one_file_is_a_picture_and_monochrome1_is_inverted(tmp_path):
    pixels = np.arange(48).reshape(6, 8)
    save(tmp_path / "a.dcm", pixels)
    image = read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image.array[..., 0], pixels)
    assert image.spacing == (0.5, 0.7)
    save(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(tmp_path / "b.dcm").array[..., 0], 47 - pixels)


def test_a_missing_slice_a_second_series_and_a_turned_slice_are_refused(tmp_path):
    pixels = np.zeros((6, 8), int)
    for name, changes, words in [
        ("gap", [{"position": (0, 0, z)} for z in (0, 1, 3)], "apart"),
        ("twice", [{"position": (0, 0, z)} for z in (0, 1, 1)], "apart"),
        ("two", [{"position": (0, 0, z), "series": f"1.{z}"} for z in (1, 2)], "2 DICOM series"),
        ("turned", [{}, {"position": (0, 0, 1), "direction": (0, 1, 0, 1, 0, 0)}], "orientation"),
    ]:
        (tmp_path / name).mkdir()
        for i, change in enumerate(changes):
            save(tmp_path / name / f"{i}.dcm", pixels, **change)
        with pytest.raises(BadImage, match=words):
            read(tmp_path / name)


def test_damaged_files_and_empty_folders(tmp_path):
    save(tmp_path / "a.dcm", np.zeros((60, 80), int))
    content = (tmp_path / "a.dcm").read_bytes()
    for damaged in (b"", b"no dicom", content[: len(content) // 2]):
        (tmp_path / "b.dcm").write_bytes(damaged)
        with pytest.raises(BadImage, match=r"b\.dcm"):
            read(tmp_path / "b.dcm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        BadImage, match="empty is a folder without DICOM images; expected a picture, or a folder"
    ):
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


def test_a_file_without_suffix_reads_and_others_are_not_taken_for_it(tmp_path):
    pixels = np.arange(48).reshape(6, 8)
    save(tmp_path / "IM000001", pixels)
    np.testing.assert_array_equal(read(tmp_path / "IM000001").array[..., 0], pixels)
    assert holds_volume(tmp_path / "IM000001")  # like .dcm: its mask is a .nii.gz
    (tmp_path / "README").write_text("nothing" * 100)
    with pytest.raises(BadImage, match="unknown type"):
        read(tmp_path / "README")


def test_a_tilted_gantry_has_an_sform_and_no_qform(tmp_path):
    """Slices that move 0.46 mm to the back each: the affine says so, and a mask does not contradict it."""
    (tmp_path / "s").mkdir()
    for k in range(6):
        save(tmp_path / "s" / f"{k}.dcm", np.full((6, 8), k), (0, 0.46 * k, 3.0 * k))
    image = read(tmp_path / "s")
    assert image.notes == (SLANTED,)
    np.testing.assert_allclose(image.affine[:3, 2], [0, -0.46, 3], atol=1e-9)
    write_mask(tmp_path / "m.nii.gz", np.ones(image.grid, np.uint8), image)
    header = nibabel.load(tmp_path / "m.nii.gz").header
    np.testing.assert_allclose(header.get_sform(), image.affine, atol=1e-6)
    assert int(header["qform_code"]) == 0
    assert int(header["sform_code"]) == 1
    np.testing.assert_allclose(header["pixdim"][1:4], image.spacing, rtol=1e-6)
    straight = series(tmp_path / "t") is not None and read(tmp_path / "t")
    assert straight.notes == ()
    write_mask(tmp_path / "n.nii.gz", np.ones(straight.grid, np.uint8), straight)
    assert int(nibabel.load(tmp_path / "n.nii.gz").header["qform_code"]) == 1


@pytest.mark.parametrize("shared", [(), ("orientation", "measures"), ("orientation", "measures", "rescale")])
def test_an_enhanced_file_is_the_volume_of_its_frames(tmp_path, shared):
    """Whether the functional groups say it per frame or for all; frames in any order."""
    stack = np.random.default_rng(0).integers(0, 2000, (5, 6, 8))
    order = [3, 0, 4, 1, 2]
    slopes = [2.0] * 5 if "rescale" in shared else [1.0, 2.0, 3.0, 4.0, 5.0]
    enhanced(
        tmp_path / "IM1", stack[order], [(10, 20, 30 + 2.5 * k) for k in order],
        slopes=[slopes[k] for k in order], shared=shared,
    )  # fmt: skip
    image = read(tmp_path / "IM1")
    expected = stack * np.array(slopes)[:, None, None] - 1024
    np.testing.assert_allclose(image.array[..., 0], expected.transpose(2, 1, 0))
    assert image.spacing == pytest.approx((0.7, 0.5, 2.5))
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [-10.7, -21, 37.5, 1])


def test_what_an_enhanced_file_lacks_is_named(tmp_path):
    stack = np.zeros((3, 6, 8), int)
    positions = [(0, 0, z) for z in range(3)]
    for leave_out, word in [
        ("position", "3 of 3 frames have no ImagePositionPatient"),
        ("orientation", "no ImageOrientationPatient"),
        ("measures", "no PixelSpacing"),
    ]:
        enhanced(tmp_path / "a.dcm", stack, positions, leave_out=leave_out)
        with pytest.raises(BadImage, match=word):
            read(tmp_path / "a.dcm")
    enhanced(tmp_path / "b.dcm", stack, [(0, 0, 0)] * 3)
    with pytest.raises(BadImage, match="2 are there twice"):
        read(tmp_path / "b.dcm")
    enhanced(tmp_path / "c.dcm", stack, positions[:2])
    with pytest.raises(BadImage, match="3 frames, but functional groups of 2"):
        read(tmp_path / "c.dcm")


def test_what_a_series_lacks_is_named_with_its_number(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(4):
        lacking = {"ImagePositionPatient": None} if k == 2 else {}
        save(tmp_path / "s" / f"{k}.dcm", np.zeros((6, 8)), (0, 0, k), **lacking)
    with pytest.raises(BadImage, match="1 of 4 slices have no ImagePositionPatient"):
        read(tmp_path / "s")


def test_a_damaged_slice_does_not_pass_for_another_kind_of_file(tmp_path):
    series(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("scanned on a Monday" * 20)
    assert read(tmp_path / "s").notes == (LEFT_OUT,)
    last = sorted((tmp_path / "s").glob("*.dcm"))[-1]
    last.write_bytes(last.read_bytes()[:400])
    with pytest.raises(BadImage, match=last.name.replace(".", r"\.")):
        read(tmp_path / "s")


def test_colours_of_a_series_stay_and_monochrome1_turns_over_the_whole_volume(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(3):
        save(
            tmp_path / "s" / f"{k}.dcm",
            np.full((6, 8), 10 * k),
            (0, 0, k),
            PhotometricInterpretation="MONOCHROME1",
        )
    np.testing.assert_array_equal(read(tmp_path / "s").array[0, 0, :, 0], [20, 10, 0])


def test_slices_beside_the_line_are_refused(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(4):
        save(tmp_path / "s" / f"{k}.dcm", np.zeros((6, 8)), (5 * (k == 1), 0, k))
    with pytest.raises(BadImage, match="beside the line"):
        read(tmp_path / "s")


def test_frames_count_against_the_budget_before_they_are_decoded(tmp_path):
    stack = np.zeros((3, 6, 8), int)
    enhanced(tmp_path / "a.dcm", stack, [(0, 0, z) for z in range(3)])
    read(tmp_path / "a.dcm", max_bytes=3 * 48 * 4)
    with pytest.raises(BadImage, match="at most"):
        read(tmp_path / "a.dcm", max_bytes=3 * 48 * 4 - 1)
    save(tmp_path / "b.dcm", np.zeros((6, 8)), NumberOfFrames=1 << 30)
    with pytest.raises(BadImage, match="at most"):
        read(tmp_path / "b.dcm")


def test_a_deflated_file_reads_and_a_bomb_does_not(tmp_path):
    import zlib

    from pydicom.uid import DeflatedExplicitVRLittleEndian

    pixels = np.arange(48).reshape(6, 8)
    save(tmp_path / "a.dcm", pixels, syntax=DeflatedExplicitVRLittleEndian)
    np.testing.assert_array_equal(read(tmp_path / "a.dcm").array[..., 0], pixels)
    content = (tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    pack = zlib.compressobj(wbits=-15)
    bomb = pack.compress(zlib.decompress(content[start:], wbits=-15) + bytes(1 << 22)) + pack.flush()
    (tmp_path / "b.dcm").write_bytes(content[:start] + bomb)
    with pytest.raises(BadImage, match="inflates to more than"):
        read(tmp_path / "b.dcm", max_bytes=1 << 20)
    # The same with a length of the header that leads to a small stream in one of its elements.
    pack = zlib.compressobj(wbits=-15)
    small = pack.compress(b"decoys") + pack.flush()
    element = struct.pack("<HH2sHI", 2, 0x102, b"OB", 0, len(small)) + small
    assert len(small) == 8
    header = content[:140] + struct.pack("<I", start + 12 - 144) + content[144:start]
    (tmp_path / "c.dcm").write_bytes(header + element + content[start:])
    np.testing.assert_array_equal(read(tmp_path / "c.dcm").array[..., 0], pixels)
    (tmp_path / "c.dcm").write_bytes(header + element + bomb)
    with pytest.raises(BadImage, match="inflates to more than"):
        read(tmp_path / "c.dcm", max_bytes=1 << 20)
    # And with a command set between header and stream, which nothing in an image needs.
    command = struct.pack("<HHI", 0, 0x100, 2) + b"\1\0"
    (tmp_path / "d.dcm").write_bytes(content[:start] + command + bomb)
    with pytest.raises(BadImage, match="inflates to more than"):
        read(tmp_path / "d.dcm", max_bytes=1 << 20)
