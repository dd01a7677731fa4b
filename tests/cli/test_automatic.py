"""`medvfm segment --automatic`: a label map and a table of every picture."""

import csv

import numpy as np
import pytest
from PIL import Image as Pillow

import medvfm_jax.cli.segment as command
from tests.cli.commands import LITE, SAM
from tests.predict.plain_segmenter import segmenter
from tests.predict.test_automatic_masks import PICTURE, same_grey


@pytest.fixture
def plain(monkeypatch):
    """Let the command use a model that marks what has the grey of a point."""
    model = segmenter(same_grey, prompts=("point",))
    monkeypatch.setattr(command, "load_segmenter", lambda *_, **__: model)


@pytest.fixture
def squares(tmp_path):
    Pillow.fromarray(PICTURE).save(tmp_path / "squares.png")
    return tmp_path / "squares.png"


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_label_map_and_table_say_the_same(medvfm, plain, squares, tmp_path):
    out = tmp_path / "mask.png"
    words = ("segment", squares, "--model", SAM, "--automatic", "--points-per-side", 8, "--out", out)
    result = medvfm(*words)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}  2 masks; rated IoU 0.98 to 0.94\n"
    with Pillow.open(out) as picture:
        labels = np.asarray(picture)
    rows = table(tmp_path / "mask.csv")
    assert [int(row["area"]) for row in rows] == [36, 30] == [(labels == n).sum() for n in (1, 2)]
    assert [rows[0][name] for name in ("number", "x0", "y0", "x1", "y1", "stability", "visible")] == [
        "1", "8", "9", "13", "14", "1.0", "36",
    ]  # fmt: skip
    medvfm(*words).refused(f"{out} exists")
    out.unlink()
    medvfm(*words).refused("mask.csv exists")
    assert medvfm(*words, "--overwrite", "--json").json["images"][0]["objects"][1]["area"] == 30


def test_a_folder_gives_a_folder_of_both(medvfm, plain, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Pillow.fromarray(PICTURE).save(tmp_path / "in" / f"{name}.png")
    words = ("--automatic", "--points-per-side", 4, "--pred-iou", 0.97)
    result = medvfm("segment", tmp_path / "in", "--model", SAM, *words, "--out", tmp_path / "out")
    assert result.code == 0, result
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.csv", "a.png", "b.csv", "b.png"]
    assert len(table(tmp_path / "out" / "b.csv")) == 1


def test_options_that_do_not_go_together_are_refused(medvfm, plain, squares, tmp_path):
    words = ("segment", squares, "--model", SAM, "--out", tmp_path / "m.png")
    medvfm(*words, "--points-per-side", 8).refused("--points-per-side belongs to --automatic", code=2)
    medvfm(*words, "--automatic", "--box", 1, 1, 5, 5).refused("leave out --box", code=2)
    medvfm(*words, "--automatic", "--logits", tmp_path / "l.npz").refused("leave out --logits", code=2)
    medvfm(*words, "--automatic", "--stability", 2).refused("stability is 2.0; expected a number from 0 to 1")
    medvfm(*words, "--automatic", "--slice", 2).refused("has no slices")
    assert not (tmp_path / "m.png").exists()


def test_nothing_found_is_said(medvfm, plain, squares, tmp_path):
    words = ("segment", squares, "--model", SAM, "--automatic", "--pred-iou", 1, "--points-per-side", 2)
    result = medvfm(*words, "--out", tmp_path / "m.png")
    assert "nothing found; lower --pred-iou" in result.out
    assert table(tmp_path / "m.csv") == []


def test_a_real_model_of_boxes_is_refused_and_one_of_points_works(medvfm, squares, weight_files, tmp_path):
    words = ("segment", squares, "--automatic", "--points-per-side", 3, "--out", tmp_path / "m.png")
    weights = weight_files[LITE]
    medvfm(*words, "--model", LITE, "--weights", weights).refused("box prompts only", "mobile-sam")
    few = ("--pred-iou", 0, "--stability", 0, "--model", SAM, "--weights", weight_files[SAM])
    result = medvfm(*words, *few, "--min-area", 5, "--crop-layers", 1)
    assert result.code == 0, result
    assert (tmp_path / "m.png").exists()
    assert (tmp_path / "m.csv").exists()


def test_two_images_of_one_name_do_not_share_a_table(medvfm, plain, squares, tmp_path):
    np.save(tmp_path / "squares.npy", PICTURE)
    images = (squares, tmp_path / "squares.npy")
    result = medvfm("segment", *images, "--model", SAM, "--automatic", "--out", tmp_path / "masks")
    result.refused("squares.csv", "one by one", code=2)
    assert not (tmp_path / "masks").exists()
