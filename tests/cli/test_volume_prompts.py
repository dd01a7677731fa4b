"""`medvfm segment --point-3d` and `--box-3d`."""

import nibabel
import numpy as np
import pytest

MED3D, SEGVOL = "sam-med3d-tiny-test", "segvol-tiny-test"


@pytest.fixture
def scan(tmp_path):
    array = np.random.default_rng(0).integers(0, 900, (40, 36, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (MED3D, ["--point-3d", 9, 20, 22, 1, "--point-3d", 9, 2, 22, 0]),
        pytest.param(
            SEGVOL,
            ["--box-3d", 4, 5, 6, 9, 20, 22, "--box-3d", 12, 5, 6, 19, 20, 22],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_volume_is_asked_and_the_mask_lies_on_its_grid(medvfm, scan, tmp_path, model, words):
    record = medvfm("segment", scan, "--model", model, *words, "--out", tmp_path / "m.nii.gz", "--json").json
    mask = nibabel.load(tmp_path / "m.nii.gz")
    assert mask.shape == (40, 36, 20)
    np.testing.assert_array_equal(mask.affine, nibabel.load(scan).affine)
    counts = {str(n): int((np.asarray(mask.dataobj) == n).sum()) for n in (1, 2)}
    assert record["images"][0]["pixels"] == {n: count for n, count in counts.items() if count}


@pytest.mark.parametrize(
    ("model", "words", "told"),
    [
        (MED3D, ["--point", 3, 4, 1, "--slice", 2], ["sees volumes", "--point-3d Z Y X LABEL"]),
        (MED3D, [], ["sees volumes"]),
        (MED3D, ["--box-3d", 1, 1, 1, 4, 4, 4], ["has no tokens for boxes"]),
        (MED3D, ["--point-3d", 25, 1, 1, 1], ["25 1 1 lies outside the volume, which has 20 slices"]),
        (MED3D, ["--point-3d", 5, 1, 1, 1, "--slice", 5], ["leave out --slice"]),
        (
            SEGVOL,
            ["--point-3d", 0, 1, 1, 1, "--point-3d", 19, 1, 1, 1],
            ["reach further than the 12 x 32 x 32"],
        ),
        ("sam-tiny-test", ["--point-3d", 5, 1, 1, 1], ["takes no prompts in a volume"]),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(medvfm, scan, tmp_path, model, words, told):
    medvfm("segment", scan, "--model", model, *words, "--out", tmp_path / "m.nii.gz").refused(*told)
    assert not (tmp_path / "m.nii.gz").exists()
