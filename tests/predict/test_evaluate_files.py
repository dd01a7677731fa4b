"""Which cases `evaluate` scores, where the scores go, and what it refuses before it predicts anything."""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import jax
import nibabel
import numpy as np
import pytest
from rich.console import Console

from medvfm_jax.data import BadCase, make_phantom_dataset
from medvfm_jax.predict import evaluate, evaluation, scored_cases
from medvfm_jax.runs import run_directory, staging
from medvfm_jax.runs.run_directory import RunError
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.train import BadConfig, adapt
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import WrongBaseWeights, load, save_own
from tests.predict.half_predictor import HalfPredictor
from tests.train.small_runs import resolved, small

MODULE = evaluation


@pytest.mark.parametrize(
    ("settings", "name", "part"),
    [
        ({}, "scores", "test"),
        ({"split": "val"}, "scores_val", "val"),
        ({"split": "train"}, "scores_train", "train"),
        ({"split": "all"}, "scores_all", "all"),
        ({"split": "train", "cases": 2}, "scores_train", "train"),
    ],
)
def test_each_split_has_files_of_its_own(own_run, fake, settings, name, part):
    scores = evaluate(EvaluateConfig(run=own_run, **settings))
    split = resolved(own_run)["split"]
    split["all"] = sorted(name for names in split.values() for name in names)
    expected = split[part][: settings.get("cases")]
    assert [r["case"] for r in scores["cases"] if r["label"] == "foreground"] == expected
    assert json.loads((own_run / f"{name}.json").read_text())["split"] == settings.get("split", "test")
    assert scores["predictions"] == name.replace("scores", "predictions")
    assert {p.stem for p in (own_run / scores["predictions"]).iterdir()} == set(expected)


def test_other_data_have_files_of_their_own_and_a_split_of_their_own(own_run, fake, tmp_path):
    other = make_phantom_dataset(tmp_path / "elsewhere", "cells", 8, size=32, seed=5)
    scores = evaluate(EvaluateConfig(run=own_run, data=str(other), seed=3))
    assert scores["data"] == "elsewhere"
    assert (own_run / "scores_elsewhere.json").is_file()
    assert not (own_run / "scores.json").exists()
    assert len(list((own_run / "predictions_elsewhere").iterdir())) == scores["n_cases"] == 2
    assert scores["cases"] == evaluate(EvaluateConfig(run=own_run, data=str(other), seed=3))["cases"]


def test_the_runs_own_data_by_name_are_its_own(own_run, fake, cells):
    scores = evaluate(EvaluateConfig(run=own_run, data=str(cells / ".." / "cells"), seed=9))
    assert (own_run / "scores.json").is_file()
    assert sorted({r["case"] for r in scores["cases"]}) == resolved(own_run)["split"]["test"]


def test_a_model_as_it_is_is_scored_with_boxes_in_a_folder_of_its_own(cells, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = evaluate(EvaluateConfig(model="sam-tiny-test", data=str(cells)))
    assert (scores["model"], scores["prompt"], scores["provenance"]["trained"]) == (
        "sam-tiny-test",
        "box",
        None,
    )
    assert (tmp_path / "runs" / "sam-tiny-test_cells" / "scores.json").is_file()
    with pytest.raises(BadConfig, match="without a delta gives no class labels"):
        evaluate(EvaluateConfig(model="sam-tiny-test", data=str(cells), prompt="none"))


@pytest.fixture
def other_weights(tmp_path):
    """File with base weights that differ in one number."""
    _, params = load("sam-tiny-test")
    leaves, tree = jax.tree.flatten(params)
    leaves[-1] = leaves[-1] + 1e-3
    save_own(tmp_path / "other.safetensors", jax.tree.unflatten(tree, leaves), "sam-tiny-test")
    return tmp_path / "other.safetensors"


def test_a_delta_for_other_base_weights_is_refused(own_run, fake, other_weights):
    with pytest.raises(WrongBaseWeights, match="made for 'sam-tiny-test' weights with fingerprint"):
        evaluate(EvaluateConfig(run=own_run, weights=other_weights))
    assert fake.made == 0
    assert not (own_run / "scores.json").exists()


def spoil(own_run, cells, tmp_path, name):
    """Let the run belong to a copy of the cells in which a case cannot be read."""
    copy = tmp_path / "spoilt"
    shutil.copytree(cells, copy)
    (copy / "images" / f"{name}.png").write_bytes(b"\x89PNG")
    record = json.loads((own_run / "config.json").read_text())
    record["resolved"]["data"] = str(copy)
    (own_run / "config.json").write_text(json.dumps(record))


def test_an_unreadable_case_is_refused_before_anything_is_predicted_or_skipped_and_counted(
    own_run, cells, fake, tmp_path
):
    kept, bad = resolved(own_run)["split"]["test"]
    spoil(own_run, cells, tmp_path, bad)
    with pytest.raises(BadCase, match=bad):
        evaluate(EvaluateConfig(run=own_run))
    assert fake.made == 0
    scores = evaluate(EvaluateConfig(run=own_run, skip_bad=True))
    assert [s["case"] for s in scores["skipped"]] == [bad]
    assert bad in scores["skipped"][0]["why"]
    assert {row["case"] for row in scores["cases"]} == {kept}
    assert scores["n_cases"] == 1


@pytest.fixture
def elsewhere(volumes, tmp_path):
    """Volumes whose label maps say that they lie 5 mm from their images."""
    folder = tmp_path / "volumes"
    shutil.copytree(volumes, folder)
    for path in (folder / "labelsTr").iterdir():
        label = nibabel.load(path)
        affine = label.affine.copy()
        affine[0, 3] += 5
        nibabel.save(nibabel.Nifti1Image(np.asarray(label.dataobj), affine), path)
    return folder


def test_labels_that_lie_elsewhere_are_refused_unless_allowed(elsewhere, fake, tmp_path):
    settings = {"model": "sam-tiny-test", "data": str(elsewhere), "out": tmp_path / "scores.json", "cases": 1}
    with pytest.raises(BadCase, match="--allow-geometry-mismatch"):
        evaluate(EvaluateConfig(**settings))
    assert fake.made == 0
    with pytest.raises(BadCase, match="5 mm apart"):
        evaluate(EvaluateConfig(**settings, allow_geometry_mismatch=4.9))
    scores = evaluate(EvaluateConfig(**settings, allow_geometry_mismatch=5.1))
    (line,) = [row["message"] for row in scores["checked"]["findings"] if row["kind"] == "reading"]
    assert line.startswith("1 case")
    assert line.endswith("(by at most 5 mm)")
    assert scores["n_cases"] == 1
    assert scores["skipped"] == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"profile": "strictest"}, MedvfmError, "strictest"),
        ({"data": "nowhere"}, MedvfmError, "nowhere is not a folder"),
        ({"prompt": "none"}, BadConfig, "trained with prompt=box; it cannot be scored with none"),
    ],
)
def test_what_cannot_be_scored_is_refused(own_run, fake, settings, error, message):
    with pytest.raises(error, match=message):
        evaluate(EvaluateConfig(run=own_run, **settings))
    assert fake.made == 0


def test_a_split_without_cases_and_a_run_that_has_not_ended_are_refused(own_run, fake):
    record = json.loads((own_run / "config.json").read_text())
    record["resolved"]["split"]["test"] = []
    (own_run / "config.json").write_text(json.dumps(record))
    with pytest.raises(BadConfig, match=r"test split of .* has no case to score; choose another --split"):
        evaluate(EvaluateConfig(run=own_run))
    (own_run / "delta.safetensors").unlink()
    with pytest.raises(RunError, match="the run has not ended"):
        evaluate(EvaluateConfig(run=own_run))
    (own_run / "config.json").unlink()
    with pytest.raises(RunError, match=r"is .* a run directory"):
        evaluate(EvaluateConfig(run=own_run))


def test_only_scores_are_overwritten(own_run, fake, tmp_path):
    notes = tmp_path / "notes.json"
    notes.write_text('{"mine": 1}')
    with pytest.raises(RunError, match="exists and holds no scores"):
        evaluate(EvaluateConfig(run=own_run, out=notes))
    (tmp_path / "predictions_new").mkdir()
    with pytest.raises(RunError, match=r"predictions_new exists, but no new\.json"):
        evaluate(EvaluateConfig(run=own_run, out=tmp_path / "new.json"))
    assert fake.made == 0
    target = tmp_path / "deep" / "er" / "scores.json"
    for _ in range(2):
        evaluate(EvaluateConfig(run=own_run, out=target))
    assert {p.name for p in target.parent.iterdir()} == {"scores.json", "predictions", "overlays"}


@pytest.fixture
def interrupted(monkeypatch):
    """`evaluate` is interrupted at the second case."""

    class Interrupted(HalfPredictor):
        count = 0

        def label_map(self, *arguments):
            type(self).count += 1
            if self.count == 2:
                raise KeyboardInterrupt
            return super().label_map(*arguments)

    monkeypatch.setattr(MODULE, "Predictor", Interrupted)


def test_an_evaluation_that_was_interrupted_leaves_nothing_and_can_be_repeated(
    own_run, interrupted, tmp_path
):
    for out, folder in ((None, own_run), (tmp_path / "out" / "x.json", tmp_path / "out")):
        before = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        with pytest.raises(KeyboardInterrupt):
            evaluate(EvaluateConfig(run=own_run, out=out))
        assert sorted(p.name for p in folder.iterdir()) == before
        assert evaluate(EvaluateConfig(run=own_run, out=out))["n_cases"] == 2
        evaluation.Predictor.count = 0


def test_an_evaluation_that_was_interrupted_leaves_the_scores_and_predictions_before_as_they_were(
    own_run, fake, monkeypatch, request
):
    evaluate(EvaluateConfig(run=own_run))
    mine = own_run / "predictions" / "mine.txt"
    mine.write_text("of the user")
    before = contents(own_run)
    request.getfixturevalue("interrupted")
    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateConfig(run=own_run))
    assert contents(own_run) == before
    evaluate(EvaluateConfig(run=own_run))
    assert mine.read_text() == "of the user"


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def killed_at(moment, out, own_run, monkeypatch):
    """What SIGKILL leaves: nothing is cleared away."""
    with monkeypatch.context() as patch:
        patch.setattr(staging.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(*moment)
        with pytest.raises(KeyboardInterrupt):
            evaluate(EvaluateConfig(run=own_run, out=out))


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["predicting", "drawing", "writing", "moving"])
def test_a_killed_evaluation_can_be_repeated(own_run, fake, tmp_path, monkeypatch, moment):
    """Wherever it was killed: with predictions hidden, half or all of them published, scores not yet written."""
    moments = {
        "predicting": (scored_cases, "score_case", _after(scored_cases.score_case, 1)),
        "drawing": (scored_cases, "write_overlays", interrupt),
        "moving": (staging, "publish", _move_one),
        "writing": (run_directory, "write_json", interrupt),
    }
    out = tmp_path / "new" / "x.json"
    killed_at(moments[moment], out, own_run, monkeypatch)
    left = sorted(p.name for p in out.parent.iterdir())
    assert ".x.json.unfinished" in left
    assert "x.json" not in left
    assert ("predictions_x" in left) == (moment == "moving")
    stream = io.StringIO()
    scores = evaluate(EvaluateConfig(run=own_run, out=out), Console(file=stream, width=300))
    assert f"an evaluation for {out} was killed; it is made anew" in stream.getvalue()
    assert sorted(p.name for p in out.parent.iterdir()) == ["overlays_x", "predictions_x", "x.json"]
    assert len(list((out.parent / "predictions_x").iterdir())) == scores["n_cases"] == 2
    assert all((out.parent / o["arrays"]).is_file() for o in scores["overlays"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_evaluation_stopped_while_it_moves_its_results_can_be_repeated(
    own_run, fake, tmp_path, monkeypatch, error
):
    """Nothing was killed: a signal, or a full disk, after the first prediction or before the scores are in place."""
    out = tmp_path / "new" / "x.json"
    replace = os.replace
    for last in ("predictions_x", "overlays_x", "x.json"):

        def stopped(source, target, last=last):
            if last in Path(target).parts[-2:] and ".x.json.unfinished" not in Path(target).parts:
                raise error
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(staging.os, "replace", stopped)
            with pytest.raises((KeyboardInterrupt, RunError)):
                evaluate(EvaluateConfig(run=own_run, out=out))
        assert not out.exists()
        assert evaluate(EvaluateConfig(run=own_run, out=out))["n_cases"] == 2
        assert sorted(p.name for p in out.parent.iterdir()) == ["overlays_x", "predictions_x", "x.json"]
        shutil.rmtree(out.parent)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError("No space left on device")])
@pytest.mark.parametrize("predictions", [True, False])
def test_scores_that_cannot_be_written_leave_nothing(
    own_run, fake, tmp_path, monkeypatch, error, predictions
):
    config = EvaluateConfig(run=own_run, out=tmp_path / "new" / "x.json", save_predictions=predictions)

    def full(handle):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run_directory.os, "fsync", full)
        patch.setattr(scored_cases, "write_overlays", lambda *_: [])
        patch.setattr(scored_cases, "write_mask", lambda *_: None)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            evaluate(config)
    assert list((tmp_path / "new").iterdir()) == []
    assert evaluate(config)["n_cases"] == 2


def _after(function, calls):
    def called(*arguments, **options):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return called


def _move_one(folder, target):
    first = min((folder / "predictions_x").iterdir())
    (target.parent / "predictions_x").mkdir()
    os.replace(first, target.parent / "predictions_x" / first.name)
    raise KeyboardInterrupt


def test_a_folder_of_the_user_is_never_taken_for_a_leftover(own_run, fake, tmp_path):
    out = tmp_path / "x.json"
    (tmp_path / ".x.json.unfinished").mkdir()
    (tmp_path / ".x.json.unfinished" / "mine").write_text("")
    with pytest.raises(RunError, match=r"\.x\.json\.unfinished is in the way and was not made by medvfm"):
        evaluate(EvaluateConfig(run=own_run, out=out))
    assert (tmp_path / ".x.json.unfinished" / "mine").exists()


def test_two_evaluations_into_the_same_file_do_not_mix(own_run, fake, tmp_path):
    out = tmp_path / "x.json"
    with (
        staging.staged(out),
        pytest.raises(run_directory.RunInUse, match="is writing to"),
    ):
        evaluate(EvaluateConfig(run=own_run, out=out))
    assert list(tmp_path.glob("*")) == [own_run]


ATTACKS = ["../../escaped", "/escaped", "a/../../../escaped", "..", "x" * 300, "\x1b[2J", "a\\b"]


@pytest.mark.parametrize("name", ATTACKS)
def test_the_name_of_a_dataset_is_never_a_path(own_run, volumes, fake, tmp_path, monkeypatch, name):
    """Scores of other data than the run's own are named after them."""
    data = shutil.copytree(volumes, tmp_path / "data")
    info = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(info | {"name": name}))
    work = tmp_path / "deep" / "er" / "work"
    work.mkdir(parents=True)
    shutil.copytree(own_run, work / "run")
    monkeypatch.chdir(work)
    before = set(tmp_path.rglob("*"))
    for settings in ({"run": Path("run")}, {"model": "sam-tiny-test", "dtype": "float32"}):
        scores = evaluate(EvaluateConfig(data=str(data), save_predictions=False, **settings))
        written = Path(scores["file"]).resolve()
        assert written.parent.parent in (work, work / "runs")
        assert ".." not in Path(scores["file"]).parts
        assert scores["data"] == name
    new = set(tmp_path.rglob("*")) - before
    assert all(p.parent == work / "run" or p.is_relative_to(work / "runs") for p in new)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/escaped", "lite-medsam/../../x", "..", "", "m" * 300, "a\0b"]
)
def test_the_name_of_a_model_is_never_a_path(cells, fake, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MedvfmError, match="model"):
        evaluate(EvaluateConfig(model=name, data=str(cells)))
    with pytest.raises(MedvfmError, match="model"):
        adapt(small(cells, tmp_path / "run", model=name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/passwd", 5, ["sam-b"], {"a": 1}])
def test_settings_of_a_run_with_impossible_weights_are_one_sentence(own_run, fake, tmp_path, name):
    record = json.loads((own_run / "config.json").read_text())
    for change in ({"weights": name}, {"resolved": record["resolved"] | {"data": name}}):
        (own_run / "config.json").write_text(json.dumps(record | change))
        before = contents(tmp_path)
        with pytest.raises(MedvfmError):
            evaluate(EvaluateConfig(run=own_run, save_predictions=False))
        assert contents(tmp_path) == before
