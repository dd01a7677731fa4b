"""`medvfm distill` with small models: what is learned, continued and refused."""

import json
import shutil

import numpy as np
import pytest

from medvfm_jax.distill import RECIPES
from medvfm_jax.weights import safetensors_files
from tests.cli.commands import LITE, adapt_words

STUDENT = "student-tiny-test"


def words(data, out, *more, teacher=LITE, recipe="mobile_sam", steps=3):
    return (
        "distill", "--data", data, "--teacher", teacher, "--student", STUDENT, "--recipe", recipe, "--steps", steps,
        "--batch-size", 2, "--validate-every", 0, "--prompts-per-image", 2, "--learning-rate", 3e-3,
        "--augment", "none", "--out", out, *more,
    )  # fmt: skip


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs(medvfm, cells, tmp_path, recipe):
    assert medvfm(*words(cells, tmp_path, recipe=recipe, steps=1)).code == 0
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["recipe"] == recipe
    assert record["model"] == STUDENT
    assert all(np.isfinite(row["loss"]) and -1 <= row["cosine"] <= 1 for row in metrics(tmp_path))


@pytest.mark.slow
def test_the_embedding_comes_nearer_the_decoder_stays_the_teachers_and_the_student_is_scored(
    medvfm, cells, tmp_path
):
    out = tmp_path / "run"
    assert medvfm(*words(cells, out, steps=60)).code == 0
    errors = [row["embedding"] for row in metrics(out)]
    assert np.mean(errors[-6:]) < 0.5 * np.mean(errors[:3])
    moved, _ = safetensors_files.read(out / "delta.safetensors")
    assert medvfm(*words(cells, tmp_path / "start", steps=1)).code == 0
    start, _ = safetensors_files.read(tmp_path / "start" / "delta.safetensors")
    decoder = [name for name in moved if "mask_decoder" in name]
    assert decoder
    for name in decoder:
        np.testing.assert_array_equal(moved[name], start[name])
    assert medvfm("evaluate", "--run", out, "--json").json["model"].startswith(STUDENT)
    assert medvfm("report", out).code == 0
    assert "mobile_sam" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits(medvfm, cells, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--checkpoint-every", 2)
    assert medvfm(*words(cells, whole, *more, recipe="efficient_vit_sam", steps=4)).code == 0
    shutil.copytree(whole, parts)
    (parts / "delta.safetensors").unlink()
    last = max((parts / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    assert medvfm(*words(cells, parts, *more, "--resume", recipe="efficient_vit_sam", steps=4)).code == 0
    a, b = (safetensors_files.read(out / "delta.safetensors")[0] for out in (whole, parts))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_run_teaches_and_its_test_cases_stay_unseen(medvfm, cells, tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "student"
    assert medvfm(*adapt_words(cells, teacher, model=LITE)).code == 0
    record = json.loads((teacher / "config.json").read_text())
    result = medvfm(*words(cells, out, "--seed", record["seed"] + 1, teacher=teacher, recipe="task"))
    result.refused("were seen by the teacher in its training")
    assert not (out / "config.json").exists()
    same = (
        "--seed",
        record["seed"],
        "--val-fraction",
        record["val_fraction"],
        "--test-fraction",
        record["test_fraction"],
    )
    assert medvfm(*words(cells, out, *same, teacher=teacher, recipe="task")).code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "sam-tiny-test"}, "sees pictures of shape"),
        ({"teacher": STUDENT}, "starts from random weights and can teach nothing"),
        ({"teacher": "no-such-run"}, "no-such-run"),
        ({"recipe": "mobilesam"}, "nearest is 'mobile_sam'"),
    ],
)
def test_what_does_not_belong_together_is_refused(medvfm, cells, tmp_path, changes, said):
    medvfm(*words(cells, tmp_path / "run", **changes)).refused(said)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_clicks_are_not_added_for_a_model_that_knows_boxes_alone(medvfm, cells, tmp_path):
    result = medvfm(*words(cells, tmp_path / "run", recipe="tiny_sam", steps=1))
    assert "knows boxes alone" in result.out
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [stage["rounds"] for stage in record["resolved"]["stages"].values()] == [1]
