import io
import json
import shutil
import sys

import jax
import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

import medvfm_jax.train.evaluate  # noqa: F401, the module, which the function of the same name hides
from medvfm_jax.data import BadCase, make_phantom_dataset, open_dataset, read_case
from medvfm_jax.metrics import profiles
from medvfm_jax.train import BadConfig, EvaluateConfig, adapt, evaluate, run_directory
from medvfm_jax.train.evaluate import LabelsDiffer
from medvfm_jax.train.run_directory import RunError
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import WrongBaseWeights, artifacts, load, save_own
from tests.train.small_runs import small

MODULE = sys.modules["medvfm_jax.train.evaluate"]


@pytest.fixture(scope="module")
def scored(finished, compiled, tmp_path_factory):
    """(run directory, its scores): the small run on the cells, evaluated with its own model."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(finished.folder, folder)
    return folder, evaluate(EvaluateConfig(run=folder))


@pytest.fixture(scope="module")
def prompt_free(volumes, compiled, tmp_path_factory):
    """A small run without prompts on the volumes."""
    out = tmp_path_factory.mktemp("runs") / "volumes"
    return adapt(small(volumes, out, prompt="none", steps=2, validate_every=0)).folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the small run, to write into."""
    return shutil.copytree(finished.folder, tmp_path / "run")


class Fake:
    """A predictor that finds the left half of every object it is asked about; nothing is compiled.

    Prompt-free it calls every pixel brighter than the mean class 1.
    """

    made = 0

    def __init__(self, *_, flips):
        type(self).made += 1

    def classes(self, picture):
        return (picture[..., 0] > picture[..., 0].mean()).astype(np.int32)

    def label_map(self, picture, queries, values):
        out = np.zeros(picture.shape[:2], np.int32)
        for query, value in zip(queries, values, strict=True):
            x0, y0, x1, y1 = np.asarray(query.box, int)
            out[y0 : y1 + 1, x0 : (x0 + x1) // 2 + 1] = value
        return out


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(Fake, "made", 0)
    monkeypatch.setattr(MODULE, "Predictor", Fake)
    return Fake


def split_of(folder):
    return json.loads((folder / "config.json").read_text())["resolved"]["split"]


def test_scores_say_what_was_measured_on_what(scored, cells):
    folder, scores = scored
    assert json.loads((folder / "scores.json").read_text()) | {"file": scores["file"]} == scores
    assert scores["file"] == str(folder / "scores.json")
    expected = {
        "format": 1, "metric_profile": "strict", "unit": "patient", "split": "test", "flips": False,
        "model": "sam-tiny-test + linear", "prompt": "box", "prompt_source": "the reference of each slice",
        "data": "cells", "n_cases": 2, "n_patients": 2, "skipped": [], "predictions": "predictions",
    }  # fmt: skip
    assert {name: scores[name] for name in expected} == expected
    rows = scores["cases"]
    assert sorted({row["case"] for row in rows}) == split_of(folder)["test"]
    assert [row["label"] for row in rows] == ["foreground", "instances"] * 2
    assert {row["site"] for row in rows} <= {"dark", "bright"}
    delta, metadata = artifacts.load_delta(folder / "delta.safetensors")
    origin = scores["provenance"]
    assert origin["weights_sha256"] == metadata["fingerprint"]
    assert (
        origin["data_sha256"] == json.loads((folder / "config.json").read_text())["resolved"]["data_sha256"]
    )
    assert origin["trained"]["parameters"] == sum(x.size for x in jax.tree.leaves(delta))


def test_the_scores_are_those_of_the_predictions_that_were_written(scored, cells):
    folder, scores = scored
    dataset = open_dataset(cells)
    files = sorted((folder / "predictions").iterdir())
    assert [f.stem for f in files] == split_of(folder)["test"]
    for file in files:
        values = np.asarray(Pillow.open(file))
        assert set(np.unique(values)) <= {0, 255}  # as the masks of the dataset
        reference = read_case(dataset, file.stem).label == 1
        overlap = 2 * ((values == 255) & reference).sum() / ((values == 255).sum() + reference.sum())
        (row,) = (r for r in scores["cases"] if r["case"] == file.stem and r["label"] == "foreground")
        assert row["dice"] == pytest.approx(overlap)
    (mean,) = (s for s in scores["summary"] if (s["metric"], s["label"]) == ("dice", "foreground"))
    dice = [r["dice"] for r in scores["cases"] if r["label"] == "foreground"]
    assert mean["mean"] == pytest.approx(np.mean(dice))
    assert (mean["n"], mean["low"] is None) == (2, False)
    assert {o["rank"] for o in scores["overlays"]} == {"best", "median"}
    assert all((folder / o["arrays"]).is_file() for o in scores["overlays"])


def test_evaluating_again_gives_the_same_numbers_and_flips_others(scored, compiled, tmp_path):
    folder, scores = scored
    again = evaluate(EvaluateConfig(run=folder, out=tmp_path / "again.json", save_predictions=False))
    assert (again["cases"], again["summary"]) == (scores["cases"], scores["summary"])
    assert [p.name for p in tmp_path.iterdir()] == ["again.json"]
    turned = evaluate(
        EvaluateConfig(run=folder, out=tmp_path / "flips.json", save_predictions=False, flips=True)
    )
    assert turned["flips"] is True
    assert turned["cases"] != scores["cases"]


def test_a_delta_scores_the_same_without_its_run(scored, cells, compiled, tmp_path):
    folder, scores = scored
    alone = evaluate(
        EvaluateConfig(
            model="sam-tiny-test", delta=folder / "delta.safetensors", data=str(cells), out=tmp_path / "s.json",
            val_fraction=0.2, save_predictions=False,
        )
    )  # fmt: skip
    assert alone["cases"] == scores["cases"]  # the split is that of `adapt` with the same seed and shares
    assert alone["model"] == scores["model"]


def test_a_perfect_prediction_scores_one(run, cells, monkeypatch):
    dataset = open_dataset(cells)
    instances = {
        read_case(dataset, c).image.array.tobytes(): read_case(dataset, c).instances for c in dataset.cases
    }

    class Perfect(Fake):
        def label_map(self, picture, queries, values):
            return instances[picture.tobytes()]

    monkeypatch.setattr(MODULE, "Predictor", Perfect)
    scores = evaluate(EvaluateConfig(run=run, split="all"))
    assert scores["n_cases"] == 10
    rows = {(s["metric"], s["label"]): s for s in scores["summary"]}
    for metric, value in {"dice": 1.0, "iou": 1.0, "nsd": 1.0, "hd95": 0.0, "assd": 0.0}.items():
        row = rows[metric, "foreground"]
        assert [row[n] for n in ("mean", "median", "low", "high", "n")] == [value] * 4 + [10]
    assert {s["mean"] for s in scores["summary"] if s["label"] == "instances"} == {1.0}
    for case in dataset.cases:
        np.testing.assert_array_equal(
            np.asarray(Pillow.open(run / "predictions_all" / f"{case.id}.png")),
            np.asarray(Pillow.open(case.label)),
        )


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
def test_each_split_has_files_of_its_own(run, fake, settings, name, part):
    scores = evaluate(EvaluateConfig(run=run, **settings))
    split = split_of(run)
    split["all"] = sorted(name for names in split.values() for name in names)
    expected = split[part][: settings.get("cases")]
    assert [r["case"] for r in scores["cases"] if r["label"] == "foreground"] == expected
    assert json.loads((run / f"{name}.json").read_text())["split"] == settings.get("split", "test")
    assert scores["predictions"] == name.replace("scores", "predictions")
    assert {p.stem for p in (run / scores["predictions"]).iterdir()} == set(expected)


def test_other_data_have_files_of_their_own_and_a_split_of_their_own(run, fake, tmp_path):
    other = make_phantom_dataset(tmp_path / "elsewhere", "cells", 8, size=32, seed=5)
    scores = evaluate(EvaluateConfig(run=run, data=str(other), seed=3))
    assert scores["data"] == "elsewhere"
    assert (run / "scores_elsewhere.json").is_file()
    assert not (run / "scores.json").exists()
    assert len(list((run / "predictions_elsewhere").iterdir())) == scores["n_cases"] == 2
    assert scores["cases"] == evaluate(EvaluateConfig(run=run, data=str(other), seed=3))["cases"]


def test_the_runs_own_data_by_name_are_its_own(run, fake, cells):
    scores = evaluate(EvaluateConfig(run=run, data=str(cells / ".." / "cells"), seed=9))
    assert (run / "scores.json").is_file()
    assert sorted({r["case"] for r in scores["cases"]}) == split_of(run)["test"]


def test_a_volume_is_written_on_its_own_grid(prompt_free, volumes, compiled):
    scores = evaluate(EvaluateConfig(run=prompt_free))
    dataset = open_dataset(volumes)
    (name,) = split_of(prompt_free)["test"]
    case = read_case(dataset, name)
    written = nibabel.load(prompt_free / "predictions" / f"{name}.nii.gz")
    assert written.shape == case.label.shape == (24, 24, 6)
    np.testing.assert_allclose(written.affine, nibabel.load(case.case.images[0]).affine)
    assert set(np.unique(np.asarray(written.dataobj))) <= {0, 1, 2}
    assert (scores["prompt"], scores["prompt_source"]) == ("none", None)
    rows = {row["label"]: row for row in scores["cases"]}
    assert set(rows) == {"shell", "core"}
    for label, value in (("shell", 1), ("core", 2)):
        predicted, reference = np.asarray(written.dataobj) == value, case.label == value
        assert rows[label]["dice"] == pytest.approx(
            2 * (predicted & reference).sum() / (predicted.sum() + reference.sum())
        )
        assert rows[label]["volume_reference"] == pytest.approx(3.0 * reference.sum())  # voxels of 3 mm³
    assert {row["unit"] for row in scores["cases"]} == {"mm"}
    assert scores["summary"][0]["label"] == "all"


def test_other_labels_are_refused_for_a_model_with_one_output_per_label(prompt_free, volumes, fake, tmp_path):
    renamed = tmp_path / "renamed"
    shutil.copytree(volumes, renamed)
    info = json.loads((renamed / "dataset.json").read_text())
    info["labels"] = {"background": 0, "rim": 1, "core": 2}
    (renamed / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(
        LabelsDiffer, match=r"labels background, shell, core; .*renamed has background, rim, core"
    ):
        evaluate(EvaluateConfig(run=prompt_free, data=str(renamed)))
    with pytest.raises(BadConfig, match="trained with prompt=none; it cannot be scored with box"):
        evaluate(EvaluateConfig(run=prompt_free, prompt="box"))
    assert fake.made == 0


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


def test_points_for_a_model_trained_with_boxes_are_warned_about(cells, monkeypatch, tmp_path):
    class Nothing(Fake):
        def label_map(self, picture, queries, values):
            assert all(query.box is None for query in queries)
            return np.zeros(picture.shape[:2], np.int32)

    monkeypatch.setattr(MODULE, "Predictor", Nothing)
    stream = io.StringIO()
    config = EvaluateConfig(model="lite-tiny-test", data=str(cells), prompt="point", out=tmp_path / "s.json")
    scores = evaluate(config, Console(file=stream, width=200))
    assert "warning: lite-tiny-test was not trained with point prompts" in stream.getvalue()
    assert scores["empty"]["prediction"] == scores["n_cases"] == 2


@pytest.fixture
def other_weights(tmp_path):
    """File with base weights that differ in one number."""
    _, params = load("sam-tiny-test")
    leaves, tree = jax.tree.flatten(params)
    leaves[-1] = leaves[-1] + 1e-3
    save_own(tmp_path / "other.safetensors", jax.tree.unflatten(tree, leaves), "sam-tiny-test")
    return tmp_path / "other.safetensors"


def test_a_delta_for_other_base_weights_is_refused(run, fake, other_weights):
    with pytest.raises(WrongBaseWeights, match="made for 'sam-tiny-test' weights with fingerprint"):
        evaluate(EvaluateConfig(run=run, weights=other_weights))
    assert fake.made == 0
    assert not (run / "scores.json").exists()


def spoil(run, cells, tmp_path, name):
    """Let the run belong to a copy of the cells in which a case cannot be read."""
    copy = tmp_path / "spoilt"
    shutil.copytree(cells, copy)
    (copy / "images" / f"{name}.png").write_bytes(b"\x89PNG")
    record = json.loads((run / "config.json").read_text())
    record["resolved"]["data"] = str(copy)
    (run / "config.json").write_text(json.dumps(record))


def test_an_unreadable_case_is_refused_before_anything_is_predicted_or_skipped_and_counted(
    run, cells, fake, tmp_path
):
    kept, bad = split_of(run)["test"]
    spoil(run, cells, tmp_path, bad)
    with pytest.raises(BadCase, match=bad):
        evaluate(EvaluateConfig(run=run))
    assert fake.made == 0
    scores = evaluate(EvaluateConfig(run=run, skip_bad=True))
    assert [s["case"] for s in scores["skipped"]] == [bad]
    assert bad in scores["skipped"][0]["why"]
    assert {row["case"] for row in scores["cases"]} == {kept}
    assert scores["n_cases"] == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"profile": "strictest"}, MedvfmError, "strictest"),
        ({"data": "nowhere"}, MedvfmError, "nowhere is not a folder"),
        ({"prompt": "none"}, BadConfig, "trained with prompt=box; it cannot be scored with none"),
    ],
)
def test_what_cannot_be_scored_is_refused(run, fake, settings, error, message):
    with pytest.raises(error, match=message):
        evaluate(EvaluateConfig(run=run, **settings))
    assert fake.made == 0


def test_a_split_without_cases_and_a_run_that_has_not_ended_are_refused(run, fake):
    record = json.loads((run / "config.json").read_text())
    record["resolved"]["split"]["test"] = []
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(BadConfig, match=r"test split of .* has no case to score; choose another --split"):
        evaluate(EvaluateConfig(run=run))
    (run / "delta.safetensors").unlink()
    with pytest.raises(RunError, match="the run has not ended"):
        evaluate(EvaluateConfig(run=run))
    (run / "config.json").unlink()
    with pytest.raises(RunError, match=r"is .* a run directory"):
        evaluate(EvaluateConfig(run=run))


def test_only_scores_are_overwritten(run, fake, tmp_path):
    notes = tmp_path / "notes.json"
    notes.write_text('{"mine": 1}')
    with pytest.raises(RunError, match="exists and holds no scores"):
        evaluate(EvaluateConfig(run=run, out=notes))
    (tmp_path / "predictions_new").mkdir()
    with pytest.raises(RunError, match=r"predictions_new exists, but no new\.json"):
        evaluate(EvaluateConfig(run=run, out=tmp_path / "new.json"))
    assert fake.made == 0
    target = tmp_path / "deep" / "er" / "scores.json"
    for _ in range(2):
        evaluate(EvaluateConfig(run=run, out=target))
    assert {p.name for p in target.parent.iterdir()} == {"scores.json", "predictions", "overlays"}


def test_an_evaluation_that_was_interrupted_can_be_repeated(run, monkeypatch):
    class Interrupted(Fake):
        count = 0

        def label_map(self, *arguments):
            type(self).count += 1
            if self.count == 2:
                raise KeyboardInterrupt
            return super().label_map(*arguments)

    monkeypatch.setattr(MODULE, "Predictor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateConfig(run=run))
    assert len(list((run / "predictions").iterdir())) == 1
    assert not (run / "scores.json").exists()
    assert evaluate(EvaluateConfig(run=run))["n_cases"] == 2


@pytest.mark.parametrize("profile", profiles.names())
def test_every_profile_scores_half_of_each_object(run, fake, profile, tmp_path):
    scores = evaluate(EvaluateConfig(run=run, profile=profile, out=tmp_path / "s.json"))
    assert scores["metric_profile"] == profile
    dice = [row["dice"] for row in scores["cases"] if row["label"] == "foreground"]
    assert all(0.4 < value < 0.9 for value in dice)


@pytest.mark.slow
def test_samed_on_volumes_from_training_to_scores(volumes, compiled, tmp_path):
    result = adapt(
        small(volumes, tmp_path / "run", model="lite-tiny-test", adapter="samed", prompt="auto", steps=4)
    )
    scores = evaluate(EvaluateConfig(run=result.folder, split="all", flips=True))
    assert (scores["prompt"], scores["n_cases"]) == ("none", 6)
    assert all(
        (run_directory.read_json(result.folder / "scores_all.json"))[n] == scores[n]
        for n in ("cases", "empty")
    )
