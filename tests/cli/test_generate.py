"""`medvfm generate`: pictures from a model alone, a data folder that others take."""

import json
import re

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.cli.commands import LITE


def words(out, *more, teacher=LITE, steps=2):
    return (
        "generate",
        "--teacher",
        teacher,
        "--images",
        3,
        "--batch-size",
        2,
        "--steps",
        steps,
        "--out",
        out,
        *more,
    )


def pictures(folder):
    return {path.name: np.asarray(Pillow.open(path)) for path in sorted((folder / "images").iterdir())}


@pytest.mark.slow
def test_pictures_follow_the_teacher_and_make_a_data_folder_that_is_gone_on_with(medvfm, tmp_path):
    generated = tmp_path / "data"
    done = medvfm(*words(generated, steps=12))
    assert done.code == 0
    assert "17 batch norms" in done.out
    noise, made = map(float, re.search(r"loss (\S+) for noise, (\S+) for the pictures", done.out).groups())
    assert made < 0.9 * noise
    assert len(pictures(generated)) == 3
    rows = [json.loads(line) for line in (generated / "metrics.jsonl").read_text().splitlines()]
    assert [(row["first"], row["last"]) for row in rows] == [(0, 1), (2, 2)]
    assert json.loads((generated / "generated.json").read_text())["labels"] == {"background": 0, "object": 1}
    assert medvfm("check", "--data", generated).code == 0
    run = tmp_path / "student"
    done = medvfm(
        "distill", "--data", generated, "--teacher", LITE, "--student", "student-tiny-test",
        "--recipe", "mobile_sam", "--steps", 1, "--batch-size", 1, "--validate-every", 0, "--val-fraction", 0,
        "--test-fraction", 0, "--augment", "none", "--out", run,
    )  # fmt: skip
    assert done.code == 0

    before = pictures(generated)
    lost = sorted((generated / "images").iterdir())[-1]
    lost.unlink()
    refused = medvfm("check", "--data", generated)
    assert refused.code == 1  # a folder that is not complete is not taken for one that is
    assert medvfm(*words(generated, steps=12)).code == 1
    changed = medvfm(*words(generated, "--resume", steps=13))
    assert "started with steps=12, now it is 13" in changed.err
    done = medvfm(*words(generated, "--resume", steps=12))
    assert "2 of 3 pictures are there already" in done.out
    for name, picture in pictures(generated).items():
        np.testing.assert_array_equal(picture, before[name])


@pytest.mark.slow
def test_branches_that_run_as_one_product_have_no_statistics(medvfm, tmp_path):
    done = medvfm(*words(tmp_path / "data", "--images", 1, teacher="edge-tiny-test", steps=1))
    assert done.code == 0
    assert re.search(r"note: \d+ more are within branches", done.out)
    assert len(pictures(tmp_path / "data")) == 1
    row = json.loads((tmp_path / "data" / "metrics.jsonl").read_text())
    assert f"{row['loss']:.3f} for the pictures" in done.out


@pytest.mark.parametrize(
    ("teacher", "more", "sentence"),
    [
        ("swin-unet-tiny-test", (), "starts from random weights and can teach nothing"),
        ("sam-med3d-tiny-test", (), "sees volumes; generate makes pictures"),
        (LITE, ("--images", "0"), "images is 0; expected at least 1"),
        (LITE, ("--ellipses", "65"), "ellipses is 65; expected at most 64"),
        (LITE, ("--answers", "inf"), "answers is inf; expected a number of at least 0"),
        (LITE, ("--learning-rate", "inf"), "learning_rate is inf; expected above 0, at most 10"),
        (LITE, ("--statistics", "0", "--answers", "0"), "statistics \\+ answers"),
        ("nothing", (), "nothing"),
    ],
)
def test_what_pictures_cannot_be_made_from(medvfm, tmp_path, teacher, more, sentence):
    done = medvfm(*words(tmp_path / "data", *more, teacher=teacher))
    assert done.code != 0
    assert re.search(sentence, done.err)
    assert not (tmp_path / "data").exists()
