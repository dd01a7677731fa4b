"""`medvfm adapt`: what it takes, prints and leaves; killed and resumed runs are in test_resume.py."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import medvfm_jax.cli.adapt as command
from medvfm_jax.train import AdaptConfig
from medvfm_jax.train.adaptation import RunResult
from medvfm_jax.weights import artifacts
from tests.cli.commands import SAM, adapt_words, contents


@pytest.fixture
def asked(monkeypatch):
    """The settings `adapt` was called with, instead of a run."""
    seen = []

    def adapt(config, display, placement):
        seen.append(config)
        assert placement is None
        return RunResult(config.out, config.out / "delta.safetensors", 3, None, 10, 100, 40)

    monkeypatch.setattr(command, "adapt", adapt)
    return seen


def test_every_setting_of_the_python_interface_is_an_option(medvfm):
    text = medvfm("adapt", "--help").out
    for field in fields(AdaptConfig):
        assert f"--{field.name.replace('_', '-')}" in text


def test_words_become_settings(medvfm, asked, tmp_path):
    result = medvfm("adapt", "--data", "d", "--out", tmp_path / "r", "--set", "lora.rank=8", "--set", "lora.alpha=4",
                    "--learning-rate", "1e-4", "--train-cases", 5, "--skip-bad", "--weights", "w.pth",
                    "--allow-geometry-mismatch", 0.5)  # fmt: skip
    assert result == (0, f"next: medvfm evaluate --run {tmp_path / 'r'}\n", "")
    expected = AdaptConfig(
        "d", out=tmp_path / "r", set=("lora.rank=8", "lora.alpha=4"), learning_rate=1e-4, train_cases=5,
        skip_bad=True, weights=Path("w.pth"), allow_geometry_mismatch=0.5,
    )  # fmt: skip
    assert asked == [expected]


def test_without_options_the_settings_are_those_of_the_python_interface(medvfm, asked):
    medvfm("adapt", "--data", "d")
    assert asked == [AdaptConfig("d")]


@pytest.mark.parametrize(
    ("words", "mesh", "parts"),
    [(["all"], {"data": 8}, 8), (["data=2,model=4", "--rules", "tensor"], {"data": 2, "model": 4}, 2)],
)
def test_a_mesh_takes_the_devices_it_names(medvfm, monkeypatch, tmp_path, words, mesh, parts):
    seen = []

    def adapt(config, display, placement):
        seen.append(placement)
        return RunResult(config.out, config.out / "delta.safetensors", 3, None, 10, 100, 40)

    monkeypatch.setattr(command, "adapt", adapt)
    assert medvfm("adapt", "--data", "d", "--out", tmp_path / "r", "--mesh", *words).code == 0
    assert seen[0].parts == parts
    assert seen[0].describe()["mesh"] == {"clients": 1, "replica": 1, "data": 1, "model": 1} | mesh


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mesh", "data=3"), "needs 3 devices"),
        (("--mesh", "rows=8"), "axis 'rows' does not exist"),
        (("--mesh", "all", "--batch-size", "12"), "choose a multiple of 8"),
        (("--coordinator", "a:1"), "add --distributed"),
        (("--processes", "2"), "add --distributed"),
        (("--rules", "fsdp"), "say which with --mesh"),
        (("--sums", "bfloat16"), "say which with --mesh"),
        (("--distributed", "--coordinator", "a:1"), "either all or none"),
        (("--distributed", "--coordinator", "a", "--processes", "2", "--process", "0"), "expected host:port"),
        (
            ("--distributed", "--coordinator", "a:1", "--processes", "2", "--process", "2"),
            "Process 2 does not exist",
        ),
    ],
)
def test_devices_and_processes_that_do_not_fit_are_refused(medvfm, tmp_path, words, message):
    medvfm("adapt", "--data", "d", "--out", tmp_path / "r", *words).refused(message)
    assert not (tmp_path / "r").exists()


def test_json_is_one_object(medvfm, asked, tmp_path):
    result = medvfm("adapt", "--data", "d", "--out", tmp_path / "r", "--json")
    assert result.json == {
        "folder": str(tmp_path / "r"), "delta": str(tmp_path / "r" / "delta.safetensors"), "step": 3,
        "val_dice": None, "trained": 10, "total": 100, "delta_bytes": 40, "goodput": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps", 0), "steps is 0; expected at least 1"),
        (("--val-fraction", 0.6, "--test-fraction", 0.5), "nothing is left to train on"),
        (("--accumulate", 3), "accumulate=3 does not divide batch_size=4"),
        (("--learning-rate", -1), "learning_rate is -1.0; expected positive"),
    ],
)
def test_settings_without_meaning_are_bad_usage(medvfm, asked, words, sentence):
    medvfm("adapt", "--data", "d", *words).refused(sentence, "medvfm adapt --help", code=2)
    assert asked == []


def test_a_model_without_pretrained_weights_is_trained_whole_or_not_at_all(medvfm, cells, tmp_path):
    words = adapt_words(cells, tmp_path / "run", model="unet", adapter="samed")
    medvfm(*words).refused("use --adapter full with --model unet", code=1)
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_trains_and_continues_from_itself(medvfm, trained, cells, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "delta.safetensors").unlink()
    result = medvfm(*adapt_words(cells, run), "--resume")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith(
        f"{SAM} with linear, box prompts: 528 parameters train, 0.72 % of the model's 73,372"
    )
    assert lines[1].startswith(
        "cells: 4 cases to train on (4 images), 1 for validation (1 image), 1 for the test"
    )
    assert "resuming at step 2 of 2" in lines
    assert lines[-1] == f"next: medvfm evaluate --run {run}"
    assert (run / "delta.safetensors").read_bytes() == (trained / "delta.safetensors").read_bytes()


def test_the_delta_is_of_few_parameters_and_says_what_it_belongs_to(trained):
    delta, metadata = artifacts.load_delta(trained / "delta.safetensors")
    assert sum(np.size(a) for module in delta["head"].values() for a in module.values()) == 528
    assert metadata["base"] == SAM
    assert metadata["labels"] == {"background": 0, "foreground": 1}
    assert metadata["channel_names"] == []
    assert json.loads((trained / "config.json").read_text())["steps"] == 2


def test_an_existing_run_and_other_files_are_left_alone(medvfm, trained, cells, tmp_path):
    before = contents(trained)
    medvfm(*adapt_words(cells, trained)).refused("already holds a run; add --resume to continue it", code=1)
    assert contents(trained) == before
    mine = shutil.copytree(cells, tmp_path / "mine")
    (mine / "metrics.jsonl").write_text("mine")
    before = contents(mine)
    for flags in ((), ("--resume",)):
        medvfm(*adapt_words(cells, mine), *flags).refused(
            "holds no run but other files (images, ...)", code=1
        )
    assert contents(mine) == before
    (tmp_path / "file").write_text("mine")
    medvfm(*adapt_words(cells, tmp_path / "file")).refused("Cannot use", "as a run directory", code=1)
    medvfm(*adapt_words(cells, tmp_path / "file" / "run")).refused("as a run directory", code=1)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("adapter", "setting", "words"),
    [
        ("lora", "lora.at=image_encoder/.*/attn/qvk", ("matches no module", "nearest: ", "blocks_0/attn/qkv")),
        ("linear", "head.at=mask_decoder/iou_tokn/embedding", ("matches no parameter", "iou_token/embedding")),
        ("lora", "lora.at=[", ("'[' is not a regular expression",)),
        ("lora", "lora.rnak=3", ("has no option 'lora.rnak', the nearest is 'lora.rank'",)),
        ("lora", "lora.rank=0", ("rank must be at least 1, not 0",)),
        ("lora", "lora.rank=two", ("lora.rank must be a whole number, not 'two'",)),
        ("lora", "rank", ("'rank' is no setting: write part.option=value",)),
        ("loar", "lora.rank=3", ("no system 'loar', the nearest is 'lora'",)),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_names_the_nearest(medvfm, cells, tmp_path, adapter, setting, words):
    run = tmp_path / "run"
    sentence = medvfm(*adapt_words(cells, run, adapter=adapter), "--set", setting).refused(*words, code=1)
    assert "[" not in sentence.replace("'['", "")  # paths as words, no Python
    assert not run.exists()


@pytest.mark.slow
def test_checkpoints_in_parts_are_gone_on_with(medvfm, cells, tmp_path):
    words = [*adapt_words(cells, tmp_path / "run", adapter="linear", steps=2), "--checkpoints", "sharded"]
    assert medvfm(*words).code == 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    before = (tmp_path / "run" / "delta.safetensors").read_bytes()
    again = medvfm(*words, "--resume")
    assert "resuming at step 2 of 2" in again.out
    assert (tmp_path / "run" / "delta.safetensors").read_bytes() == before
    other = [word if word != "sharded" else "whole" for word in words]
    medvfm(*other, "--resume").refused("checkpoints")


def test_data_on_storage_are_brought_used_and_found_again(medvfm, cells, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    url, run = f"file://{cells}", tmp_path / "run"
    assert medvfm(*adapt_words(f"{url}/", run)).code == 0
    assert json.loads((run / "config.json").read_text())["resolved"]["data"] == url
    assert medvfm("evaluate", "--run", run, "--data", url, "--no-save-predictions").code == 0
    assert (run / "scores.json").exists()  # where those of the run's own data go
    assert len(list((tmp_path / "cache" / "folders").glob("*/*/cells"))) == 1
