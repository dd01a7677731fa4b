"""Which cases `evaluate` scores, where the scores go, and what it refuses before it predicts anything."""

import json
import shutil
import sys

import jax
import nibabel
import numpy as np
import pytest

import medvfm_jax.train.evaluate  # noqa: F401, the module, which the function of the same name hides
from medvfm_jax.data import BadCase, make_phantom_dataset
from medvfm_jax.train import BadConfig, EvaluateConfig, evaluate
from medvfm_jax.train.run_directory import RunError
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import WrongBaseWeights, load, save_own
from tests.train.half_predictor import HalfPredictor
from tests.train.small_runs import resolved

MODULE = sys.modules["medvfm_jax.train.evaluate"]


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
    with pytest.raises(BadConfig, match="as it is gives no labels of its own"):
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
    (line,) = scores["data_notes"]
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


def test_an_evaluation_that_was_interrupted_can_be_repeated(own_run, monkeypatch):
    class Interrupted(HalfPredictor):
        count = 0

        def label_map(self, *arguments):
            type(self).count += 1
            if self.count == 2:
                raise KeyboardInterrupt
            return super().label_map(*arguments)

    monkeypatch.setattr(MODULE, "Predictor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateConfig(run=own_run))
    assert len(list((own_run / "predictions").iterdir())) == 1
    assert not (own_run / "scores.json").exists()
    assert evaluate(EvaluateConfig(run=own_run))["n_cases"] == 2
