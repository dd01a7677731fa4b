"""`medvfm distill` with small models: what is learned, continued and refused."""

import json
import shutil

import numpy as np
import pytest

from medvfm_jax.distill import RECIPES
from medvfm_jax.weights import safetensors_files
from tests.cli.commands import LITE, adapt_words

STUDENT, PLAIN, DILATED = "student-tiny-test", "vit-student-tiny-test", "dilated-student-tiny-test"
STUDENTS = {"sami": PLAIN, "sam_lightening": DILATED}


def words(data, out, *more, teacher=LITE, student=None, recipe="mobile_sam", steps=3, batch=2):
    return (
        "distill", "--data", data, "--teacher", teacher, "--student", student or STUDENTS.get(recipe, STUDENT),
        "--recipe", recipe, "--steps", steps, "--batch-size", batch, "--validate-every", 0,
        "--prompts-per-image", 2, "--learning-rate", 3e-3,
        "--augment", "none", "--out", out, *more,
    )  # fmt: skip


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[] if r == "mobile_sam" else pytest.mark.slow) for r in RECIPES]
)
def test_every_recipe_runs(medvfm, cells, tmp_path, recipe):
    done = medvfm(*words(cells, tmp_path, recipe=recipe, steps=1))
    assert done.code == 0
    stages = len(RECIPES[recipe].configured({}))
    assert (f"stage {stages} of {stages} gets none of the 1 steps" in done.out) == (stages > 1)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["recipe"] == recipe
    assert record["model"] == STUDENTS.get(recipe, STUDENT)
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path))


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


# Recipe, options, the number that falls, and to which share of its start in 60 steps at most.
FALLING = [
    ("tiny_sam", (), "error", 0.6),
    ("edge_sam", (), "embedding", 0.6),
    ("efficient_vit_sam", (), "embedding", 0.6),
    ("sami", (), "reconstruction", 0.6),
    ("sam_lightening", (), "error", 0.8),
    ("dear_kd", (), "layers", 0.8),
    ("task", (), "error", 0.6),
    ("emkd", (), "importance", 0.8),
    ("mean_teacher", ("embedding=1",), "error", 0.6),
    ("mutual", ("embedding=1",), "error", 0.6),
    ("task", ("masks=0", "embedding=0", "rkd_distance=25", "rkd_angle=50"), "rkd_distance", 0.8),
    ("task", ("masks=0", "mgd=1", "cirkd_memory=1", "ifvd=1"), "error", 0.8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "options", "number", "share"), FALLING)
def test_what_a_recipe_is_about_falls(medvfm, cells, tmp_path, recipe, options, number, share):
    sets = [word for option in options for word in ("--set", option)]
    batch = 4 if "rkd_angle=50" in options else 2
    assert medvfm(*words(cells, tmp_path, *sets, recipe=recipe, steps=60, batch=batch)).code == 0
    rows = metrics(tmp_path)
    found = [row[number] for row in rows if row[number] is not None and np.isfinite(row[number])]
    assert np.mean(found[-6:]) < share * np.mean(found[:3])
    first = [row["loss"] for row in rows if np.isfinite(row[number] or np.nan)]
    assert np.mean(first[-6:]) < np.mean(first[:3])


def resumed_alike(medvfm, cells, folder, recipe, *options):
    """Four steps in folder/whole, then again from its checkpoint before the last: the same bits, which are given."""
    whole, parts = folder / "whole", folder / "parts"
    more = ("--checkpoint-every", 2, *options)
    assert medvfm(*words(cells, whole, *more, recipe=recipe, steps=4)).code == 0
    shutil.copytree(whole, parts)
    (parts / "delta.safetensors").unlink()
    last = max((parts / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    assert medvfm(*words(cells, parts, *more, "--resume", recipe=recipe, steps=4)).code == 0
    a, b = (safetensors_files.read(out / "delta.safetensors")[0] for out in (whole, parts))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    return a


@pytest.mark.slow
def test_what_trains_beside_a_student_is_in_its_checkpoints_and_left_behind(medvfm, cells, tmp_path):
    """A generator, a moving average and a memory: the run goes on with the same bits, and leaves a student's delta."""
    whole = tmp_path / "whole"
    a = resumed_alike(medvfm, cells, tmp_path, "mean_teacher", "--set", "mgd=1", "--set", "cirkd_memory=1")
    assert not any(word in name for name in a for word in ("helpers", "average", "mgd"))
    assert medvfm("evaluate", "--run", whole, "--json").code == 0


@pytest.mark.slow
def test_a_small_student_learns_from_an_assistant_that_learned_from_the_teacher(medvfm, cells, tmp_path):
    """As docs/distillation.md has it; the two runs have one split, so that no test case was seen by either teacher."""
    assistant, small = tmp_path / "assistant", tmp_path / "small"
    first = words(cells, assistant, recipe="task", steps=30)
    assert medvfm(*first).code == 0
    assert medvfm(*words(cells, small, teacher=assistant, recipe="task", steps=60)).code == 0
    record = json.loads((small / "config.json").read_text())
    assert record["resolved"]["teacher"]["model"] == STUDENT
    errors = [row["error"] for row in metrics(small)]
    assert np.mean(errors[-6:]) < np.mean(errors[:3])
    assert medvfm("evaluate", "--run", small, "--json").code == 0


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits(medvfm, cells, tmp_path):
    resumed_alike(medvfm, cells, tmp_path, "efficient_vit_sam")


@pytest.mark.slow
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
        pytest.param(
            {"teacher": STUDENT}, "starts from random weights and can teach nothing", marks=pytest.mark.slow
        ),
        ({"teacher": "no-such-run"}, "no-such-run"),
        ({"teacher": "no/such/run"}, "There is no run directory no/such/run"),
        ({"recipe": "mobilesam"}, "nearest is 'mobile_sam'"),
        pytest.param(
            {"more": ("--set", "rkd_angle=1")},
            "relates 3 images of a batch to each other, and 2 are seen at once",
            marks=pytest.mark.slow,
        ),
        ({"more": ("--partner", STUDENT)}, "has one student; leave out --partner"),
        pytest.param(
            {"recipe": "sami", "student": STUDENT},
            "choose a student that is a plain ViT",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"recipe": "task", "more": ("--set", "dkd=1")}, "give --set dkd=0", marks=pytest.mark.slow
        ),
        (
            {"recipe": "mutual", "more": ("--partner", "sam-tiny-test")},
            "the partner, sam-tiny-test, (64, 64, 3); choose a partner of",
        ),
        ({"more": ("--set", "masks")}, "write option=value, such as rounds=1"),
        (
            {"recipe": "task", "more": ("--set", "rounds=1")},
            "has no option 'rounds'; tiny_sam and edge_sam have it",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(medvfm, cells, tmp_path, changes, said):
    more = changes.get("more", ())
    medvfm(
        *words(cells, tmp_path / "run", *more, **{k: v for k, v in changes.items() if k != "more"})
    ).refused(said)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_clicks_are_not_added_for_a_model_that_knows_boxes_alone(medvfm, cells, tmp_path):
    result = medvfm(*words(cells, tmp_path / "run", recipe="tiny_sam", steps=1))
    assert "knows boxes alone" in result.out
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [stage["rounds"] for stage in record["resolved"]["stages"].values()] == [1]


@pytest.mark.slow
def test_a_run_with_a_partner_and_validations_goes_on(medvfm, cells, tmp_path):
    out = tmp_path / "run"
    given = [*words(cells, out, recipe="mutual", steps=3), "--val-fraction", 0.3, "--checkpoint-every", 2]
    given[given.index("--validate-every") + 1] = 1
    assert medvfm(*given).code == 0
    shutil.rmtree(out / "checkpoints" / "step_00000003")
    (out / "delta.safetensors").unlink()
    assert "resuming at step 2 of 3" in medvfm(*given, "--resume").out
