import io
import json
import shutil

import jax
import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

from medvfm_jax.data import open_dataset, read_case
from medvfm_jax.metrics import profiles
from medvfm_jax.predict import evaluate, evaluation
from medvfm_jax.predict.subject import LabelsDiffer
from medvfm_jax.runs import run_directory
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.train import BadConfig, adapt
from medvfm_jax.train.stored_delta import ForeignDelta
from medvfm_jax.weights import artifacts
from tests.predict.half_predictor import HalfPredictor
from tests.train.small_runs import resolved, small

MODULE = evaluation


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


@pytest.mark.slow
def test_scores_say_what_was_measured_on_what(scored, cells):
    folder, scores = scored
    assert json.loads((folder / "scores.json").read_text()) | {"file": scores["file"]} == scores
    assert scores["file"] == str(folder / "scores.json")
    expected = {
        "format": 1, "metric_profile": "strict", "unit": "patient", "split": "test", "flips": False,
        "model": "sam-tiny-test + linear", "prompt": "box", "prompt_source": "the reference of each slice",
        "data": "cells", "licence": "unknown", "n_cases": 2, "n_patients": 2, "skipped": [],
        "predictions": "predictions",
    }  # fmt: skip
    assert {name: scores[name] for name in expected} == expected
    rows = scores["cases"]
    assert sorted({row["case"] for row in rows}) == resolved(folder)["split"]["test"]
    assert [row["label"] for row in rows] == ["foreground", "instances"] * 2
    assert {row["site"] for row in rows} <= {"dark", "bright"}
    delta, metadata = artifacts.load_delta(folder / "delta.safetensors")
    origin = scores["provenance"]
    assert origin["weights_sha256"] == metadata["fingerprint"]
    assert (
        origin["data_sha256"] == json.loads((folder / "config.json").read_text())["resolved"]["data_sha256"]
    )
    assert origin["trained"]["parameters"] == sum(x.size for x in jax.tree.leaves(delta))
    assert origin["trained"] == resolved(folder)["trained"]


def changed_settings(folder, copy, resolved=None, **settings):
    """A copy of a run with other words in its config.json."""
    shutil.copytree(folder, copy)
    record = json.loads((copy / "config.json").read_text())
    record["resolved"] |= resolved or {}
    (copy / "config.json").write_text(json.dumps(record | settings))
    return copy


def test_data_other_than_the_run_was_trained_on_is_noticed(scored, cells, tmp_path):
    """The data may move, which config.json is told by hand; what is in them may not change unnoticed."""
    folder, before = scored
    shutil.copytree(cells, tmp_path / "same")
    shutil.copytree(cells, tmp_path / "changed")
    first = next(iter((tmp_path / "changed" / "images").glob(f"{resolved(folder)['split']['train'][0]}.*")))
    Pillow.fromarray(255 - np.asarray(Pillow.open(first))).save(first)
    for name, warned in (("same", False), ("changed", True)):
        run = changed_settings(folder, tmp_path / f"run_{name}", {"data": str(tmp_path / name)})
        console = Console(file=io.StringIO(), width=200)
        assert evaluate(EvaluateConfig(run=run), console)["summary"] == before["summary"]
        assert ("not those the run was trained on" in console.file.getvalue()) == warned


def test_a_delta_of_other_settings_is_told_from_the_runs_own(scored, tmp_path):
    """Model, adapter, prompt, labels and seed agree; another warm-up makes another delta all the same."""
    folder, _ = scored
    run = changed_settings(folder, tmp_path / "run", warmup=0.5)
    with pytest.raises(
        ForeignDelta, match=r"was not made with the settings that config\.json beside it holds"
    ):
        evaluate(EvaluateConfig(run=run))


def test_a_delta_of_earlier_versions_is_accepted_and_that_is_said(scored, tmp_path):
    folder, before = scored
    run = shutil.copytree(folder, tmp_path / "run")
    delta, metadata = artifacts.load_delta(run / "delta.safetensors")
    del metadata["settings_sha256"]
    artifacts.save_delta(run / "delta.safetensors", delta, metadata)
    console = Console(file=io.StringIO(), width=200)
    assert evaluate(EvaluateConfig(run=run), console)["summary"] == before["summary"]
    assert "does not say which settings it was made with" in console.file.getvalue()


def test_the_scores_are_those_of_the_predictions_that_were_written(scored, cells):
    folder, scores = scored
    dataset = open_dataset(cells)
    files = sorted((folder / "predictions").iterdir())
    assert [f.stem for f in files] == resolved(folder)["split"]["test"]
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


def test_a_perfect_prediction_scores_one(own_run, cells, monkeypatch):
    dataset = open_dataset(cells)
    instances = {
        read_case(dataset, c).image.array.tobytes(): read_case(dataset, c).instances for c in dataset.cases
    }

    class Perfect(HalfPredictor):
        def label_map(self, picture, queries, values):
            return instances[picture.tobytes()]

    monkeypatch.setattr(MODULE, "Predictor", Perfect)
    scores = evaluate(EvaluateConfig(run=own_run, split="all"))
    assert scores["n_cases"] == 10
    rows = {(s["metric"], s["label"]): s for s in scores["summary"]}
    for metric, value in {"dice": 1.0, "iou": 1.0, "nsd": 1.0, "hd95": 0.0, "assd": 0.0}.items():
        row = rows[metric, "foreground"]
        assert [row[n] for n in ("mean", "median", "low", "high", "n")] == [value] * 4 + [10]
    assert {s["mean"] for s in scores["summary"] if s["label"] == "instances"} == {1.0}
    for case in dataset.cases:
        np.testing.assert_array_equal(
            np.asarray(Pillow.open(own_run / "predictions_all" / f"{case.id}.png")),
            np.asarray(Pillow.open(case.label)),
        )


@pytest.mark.slow
def test_a_volume_is_written_on_its_own_grid(prompt_free, volumes, compiled):
    scores = evaluate(EvaluateConfig(run=prompt_free))
    dataset = open_dataset(volumes)
    (name,) = resolved(prompt_free)["split"]["test"]
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


def test_volumes_with_other_channels_than_the_delta_was_trained_on_are_refused(
    prompt_free, volumes, fake, tmp_path
):
    two = shutil.copytree(volumes, tmp_path / "two")
    for image in list((two / "imagesTr").glob("*_0000.nii.gz")):
        shutil.copy(image, image.with_name(image.name.replace("_0000", "_0001")))
    info = json.loads((two / "dataset.json").read_text())
    info["channel_names"] |= {"1": "FLAIR"}
    (two / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(BadConfig, match=r"trained on 1 channel \(.*two has 2 \(.*, FLAIR\)"):
        evaluate(EvaluateConfig(run=prompt_free, data=str(two)))
    assert fake.made == 0


def test_points_for_a_model_trained_with_boxes_are_warned_about(cells, monkeypatch, tmp_path):
    class Nothing(HalfPredictor):
        def label_map(self, picture, queries, values):
            assert all(query.box is None for query in queries)
            return np.zeros(picture.shape[:2], np.int32)

    monkeypatch.setattr(MODULE, "Predictor", Nothing)
    stream = io.StringIO()
    config = EvaluateConfig(model="lite-tiny-test", data=str(cells), prompt="point", out=tmp_path / "s.json")
    scores = evaluate(config, Console(file=stream, width=200))
    assert "warning: lite-tiny-test was not trained with point prompts" in stream.getvalue()
    assert scores["empty"]["prediction"] == scores["n_cases"] == 2


@pytest.mark.parametrize("profile", profiles.PROFILES.names())
def test_every_profile_scores_half_of_each_object(own_run, fake, profile, tmp_path):
    scores = evaluate(EvaluateConfig(run=own_run, profile=profile, out=tmp_path / "s.json"))
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
