"""`medvfm segment --refine` and `--mask`."""

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from medvfm_jax.images import Query, read
from medvfm_jax.predict import load_segmenter
from tests.cli.commands import LITE, SAM

POINTS = ("--point", 5, 6, 1, "--point", 12, 3, 0)


@pytest.fixture
def grey(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (24, 20)).astype(np.uint8)
    Pillow.fromarray(array).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


@pytest.fixture
def words(grey, weight_files, tmp_path):
    file = weight_files[SAM]
    return ("segment", grey, "--model", SAM, "--weights", file, "--out", tmp_path / "m.png", "--overwrite")


def drawn(path, array):
    Pillow.fromarray(array.astype(np.uint8)).save(path)
    return path


def pixels(path):
    with Pillow.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.slow
def test_refining_writes_the_last_mask_and_says_every_step(medvfm, words, grey, weight_files, tmp_path):
    result = medvfm(*words, *POINTS, "--box", 2, 2, 15, 20, "--refine", "--logits", tmp_path / "l.npz")
    assert (result.code, result.err.count("warning")) == (0, 0), result
    first, *steps = result.out.splitlines()
    assert first.startswith(f"{tmp_path / 'm.png'}  pixels")
    assert [step.split(":")[0] for step in steps] == ["  box", "  box and 1 point", "  box and 2 points"]
    opened = load_segmenter(SAM, weights=weight_files[SAM]).interactive(read(grey))
    query = Query(np.array([2, 2, 15, 20.0]), np.array([[5, 6], [12, 3.0]]), np.array([1, 0], np.int32))
    *_, last = opened.refine(query)
    np.testing.assert_array_equal(pixels(tmp_path / "m.png"), last.labels)
    with np.load(tmp_path / "l.npz") as logits:
        np.testing.assert_allclose(logits["low_res_logits"], last.low_res_logits, atol=1e-5)
    said = medvfm(*words, *POINTS, "--refine", "--json").json["images"][0]["steps"]
    assert [(step["box"], step["points"]) for step in said] == [(False, 1), (False, 2)]


def test_a_mask_to_begin_with_stands_alone_or_with_points(medvfm, words, grey, weight_files, tmp_path):
    mask = np.zeros((24, 20))
    mask[4:14, 3:12] = 7
    file = drawn(tmp_path / "drawn.png", mask)
    opened = load_segmenter(SAM, weights=weight_files[SAM]).interactive(read(grey))
    logits = opened.mask_prompt(mask > 0)
    result = medvfm(*words, "--mask", file)
    assert result.code == 0, result
    np.testing.assert_array_equal(pixels(tmp_path / "m.png"), opened([Query()], logits).labels)
    assert medvfm(*words, "--mask", file, "--point", 5, 6, 1).code == 0
    query = Query(None, np.array([[5, 6.0]]), np.ones(1, np.int32))
    np.testing.assert_array_equal(pixels(tmp_path / "m.png"), opened([query], logits).labels)


def test_what_cannot_be_meant_is_refused(medvfm, words, tmp_path):
    medvfm(*words, "--refine", "--point", 5, 6, 1).refused(
        "give two --point, or a --box and a --point", code=2
    )
    boxes = ("--box", 1, 1, 5, 5, "--box", 2, 2, 9, 9)
    medvfm(*words, *boxes, "--refine").refused("one object", code=2)
    other = drawn(tmp_path / "other.png", np.ones((4, 4)))
    medvfm(*words, "--mask", other).refused("has shape (4, 4)", code=2)
    two = np.zeros((24, 20))
    two[0, 0], two[5, 5] = 1, 2
    medvfm(*words, "--mask", drawn(tmp_path / "two.png", two)).refused("holds 2 objects", code=2)
    empty = drawn(tmp_path / "empty.png", np.zeros((24, 20)))
    medvfm(*words, "--mask", empty).refused("holds 0 objects", code=2)
    medvfm(*words, "--automatic", "--refine").refused("leave out --refine", code=2)
    assert not (tmp_path / "m.png").exists()


def test_a_model_that_never_saw_masks_is_warned_about(medvfm, grey, weight_files, tmp_path):
    words = ("segment", grey, "--model", LITE, "--weights", weight_files[LITE], "--out", tmp_path / "m.png")
    result = medvfm(*words, "--box", 1, 1, 9, 9, "--point", 5, 6, 1, "--refine")
    assert result.code == 0
    assert f"{LITE} was not trained with masks as prompts" in result.err


def test_a_mask_of_another_place_is_refused(medvfm, weight_files, tmp_path):

    array, affine = np.zeros((8, 8, 3), np.int16), np.diag([1.0, 1.0, 3.0, 1.0])
    array[2:5, 2:5, 1] = 1
    moved = affine.copy()
    moved[0, 0], moved[0, 3] = -1.0, 7.0  # the same box, mirrored
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(array, moved), tmp_path / "mask.nii.gz")
    words = ("segment", tmp_path / "image.nii.gz", "--model", SAM, "--weights", weight_files[SAM])
    words += ("--slice", 1, "--mask", tmp_path / "mask.nii.gz", "--out", tmp_path / "m.nii.gz")
    medvfm(*words).refused("mask.nii.gz does not lie on", "position or direction", code=2)
