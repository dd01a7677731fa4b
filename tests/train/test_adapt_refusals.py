"""What `adapt` refuses before it starts, what that leaves behind, and which cases it never looks at."""

import json
import shutil

import jax
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig
from medvfm_jax.data import BadCase, BadDataset
from medvfm_jax.models.errors import UnknownModel
from medvfm_jax.models.sam.prompt_free import NotConvertible
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import RunExists, RunInUse
from medvfm_jax.train import BadConfig, adapt, training
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts
from tests.train.small_runs import resolved, small

MODULE = training


@pytest.mark.slow
def test_an_existing_run_is_refused_before_anything_is_read_and_left_as_it_is(finished, cells, monkeypatch):
    monkeypatch.setattr(MODULE, "open_split", None)  # would fail if it were called
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*")}
    with pytest.raises(RunExists, match="already holds a run; add --resume"):
        adapt(small(cells, finished.folder))
    assert {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed=0, now it is 1"),
        ({"steps": 7}, "steps=6, now it is 7"),
        ({"set": ()}, None),
        ({"learning_rate": 0.02}, "learning_rate=0.01, now it is 0.02"),
        ({"adapter": "bitfit"}, "adapter='linear', now it is 'bitfit'"),
    ],
)
def test_resuming_with_other_settings_is_refused(finished, cells, settings, message):
    if message is None:  # the same settings: nothing is left to do, and the result stays
        before = finished.delta.read_bytes()
        assert adapt(small(cells, finished.folder, resume=True, **settings)).step == 6
        assert finished.delta.read_bytes() == before
        return
    with pytest.raises(RunExists, match=message):
        adapt(small(cells, finished.folder, resume=True, **settings))


def test_resuming_on_changed_data_is_refused(finished, cells, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["resolved"]["data_sha256"] = "0" * 64  # as if the files had been others then
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    with pytest.raises(RunExists, match="data_sha256="):
        adapt(small(cells, tmp_path / "run", resume=True))


def test_a_run_that_another_process_writes_to_is_refused(cells, tmp_path):
    with run_directory.locked(tmp_path / "run"), pytest.raises(RunInUse, match="is writing to"):
        adapt(small(cells, tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": "nowhere"}, BadDataset, "nowhere is not a folder"),
        ({"model": "sam-huge"}, UnknownModel, "sam-huge"),
        (
            {"model": "vit-tiny-test", "adapter": "desam", "prompt": "auto"},
            NotConvertible,
            "DeSAM needs a SAM that takes prompts",
        ),
        ({"model": "vit-tiny-test", "adapter": "lora"}, BadConfig, "takes no prompts; use --prompt none"),
        ({"adapter": "lara"}, BadAdapterConfig, "lara"),
        ({"set": ("head.rank=8",)}, BadAdapterConfig, "head.rank"),
        ({"train_cases": 9}, MedvfmError, "9 training patients were asked for"),
        ({"weights": "no.pth"}, MedvfmError, r"no\.pth"),
        ({"objective": "sam", "prompt": "none"}, BadConfig, "objective=sam"),
    ],
)
def test_a_refused_start_leaves_nothing_behind(cells, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        adapt(small(settings.pop("data", cells), tmp_path / "run", **settings))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def spoilt(cells, tmp_path):
    """Part of the split -> a copy of the cells in which that part cannot be read."""

    def spoil(split, part):
        folder = tmp_path / f"cells_{part}"
        shutil.copytree(cells, folder)
        for name in split[part]:
            (folder / "images" / f"{name}.png").write_bytes(b"")
        return folder

    return spoil


@pytest.mark.slow
def test_a_bad_case_stops_the_run_before_it_starts_unless_it_may_be_skipped(finished, spoilt, tmp_path):
    split = resolved(finished.folder)["split"]
    folder = spoilt(split | {"train": split["train"][:1]}, "train")
    with pytest.raises(BadCase, match=split["train"][0]):
        adapt(small(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert adapt(small(folder, tmp_path / "run", skip_bad=True)).step == 6


def test_a_bad_test_case_is_found_before_the_training(finished, spoilt, tmp_path):
    split = resolved(finished.folder)["split"]
    with pytest.raises(BadCase, match=f"{split['test'][0]}.*1 more problem: medvfm check"):
        adapt(small(spoilt(split, "test"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_training_and_validation_never_look_at_the_test_cases(finished, spoilt, tmp_path):
    split = resolved(finished.folder)["split"]
    folder = spoilt(split, "test")
    result = adapt(small(folder, tmp_path / "run", skip_bad=True))
    found = resolved(result.folder)["checked"]["findings"]
    assert [(f["kind"], f["cases"]) for f in found if f["severity"] == "error"] == [
        ("unusable image", [name]) for name in sorted(split["test"])
    ]
    expected, _ = artifacts.load_delta(finished.delta)
    found, _ = artifacts.load_delta(result.delta)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert result.val_dice == finished.val_dice
