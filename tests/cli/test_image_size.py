"""`--image-size`: the run records it, and whoever loads the delta builds the model for it."""

import json

import numpy as np
import pytest

from medvfm_jax.distill.teacher import spec_before
from medvfm_jax.images import read_labels
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.train.stored_delta import load_adapted
from tests.cli.commands import LITE, SAM, adapt_words, options
from tests.federated.small_federation import SMALL

OWN = MODELS[SAM].spec.input_size


def test_a_run_of_another_size_is_evaluated_segments_and_teaches_at_that_size(medvfm, cells, tmp_path):
    run, mask = tmp_path / "run", tmp_path / "mask.png"
    assert medvfm(*adapt_words(cells, run, prompt="none", image_size=2 * OWN)).code == 0
    resolved = json.loads((run / "config.json").read_text())["resolved"]
    assert resolved["input_shape"] == [2 * OWN, 2 * OWN, 3]
    delta = run / "delta.safetensors"
    loaded = load_adapted(delta, model=None, dtype="float32")
    assert loaded.adapted.spec.input_shape == (2 * OWN, 2 * OWN, 3)
    assert loaded.adapted.spec.logits_shape == tuple(2 * side for side in MODELS[SAM].spec.logits_shape)
    assert spec_before(str(run)).input_shape == (2 * OWN, 2 * OWN, 3)
    assert medvfm("evaluate", "--run", run).code == 0
    first = sorted((run / "predictions").glob("*.png"))[0]
    picture = cells / "images" / first.name
    assert medvfm("segment", picture, "--delta", delta, "--model", SAM, "--out", mask).code == 0
    assert 0 < np.mean(read_labels(mask).array > 0) < 1
    np.testing.assert_array_equal(read_labels(mask).array > 0, read_labels(first).array > 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image_size": 0}, ("image_size", "1 to 4096 pixels")),
        ({"image_size": OWN + 1}, ("image_size", f"not {OWN + 1}")),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(medvfm, cells, tmp_path, settings, told):
    medvfm(*adapt_words(cells, tmp_path / "run", **settings)).refused(*told)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hospitals_agree_on_a_size_that_their_delta_says(medvfm, cells, tmp_path):
    run = tmp_path / "run"
    settings = SMALL | {"data": cells, "out": run, "rounds": 1, "val_fraction": 0.0, "test_fraction": 0.34}
    assert medvfm("federate", *options(**settings, image_size=2 * OWN)).code == 0
    loaded = load_adapted(run / "delta.safetensors", model=None, dtype="float32")
    assert loaded.adapted.spec.input_shape == (2 * OWN, 2 * OWN, 3)
    assert medvfm("evaluate", "--run", run).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--partner", "student-tiny-test")])
def test_a_student_sees_pictures_of_the_size_that_its_teacher_was_told_to_see(medvfm, cells, tmp_path, more):
    teacher, student, side = tmp_path / "teacher", tmp_path / "student", 2 * MODELS[LITE].spec.input_size
    assert (
        medvfm(*adapt_words(cells, teacher, model=LITE, adapter="lora", prompt="box", image_size=side)).code
        == 0
    )
    done = medvfm(
        "distill", "--data", cells, "--teacher", teacher, "--student", "student-tiny-test", "--steps", 2,
        "--recipe", "mutual" if more else "mobile_sam", "--validate-every", 0, "--augment", "none",
        "--batch-size", 2, "--out", student, *more,
    )  # fmt: skip
    assert done.code == 0
    assert f"student-tiny-test sees pictures of {side} pixels" in done.out + done.err
    assert json.loads((student / "config.json").read_text())["resolved"]["input_shape"][:2] == [side] * 2
    assert medvfm("evaluate", "--run", student).code == 0
