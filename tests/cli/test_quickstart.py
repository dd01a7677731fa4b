"""`medvfm quickstart`: the whole of it on a tiny model and made-up volumes; slow: on the real ones."""

import json
import os
from pathlib import Path

import pytest

import medvfm_jax.cli.quickstart as command
from medvfm_jax.data import dataset
from medvfm_jax.weights import artifacts
from tests.cli.commands import SAM, contents


@pytest.fixture
def tiny(monkeypatch, volumes):
    """Let the command use the tiny model, the last layer alone, and volumes of 16 × 16 × 6 voxels."""
    monkeypatch.setattr(command, "MODEL", SAM)
    monkeypatch.setattr(command, "ADAPTER", "linear")
    monkeypatch.setitem(dataset.BUILTIN, command.mni152.NAME, lambda offline: volumes)


def test_words_have_defaults_and_settings_without_meaning_are_refused_first(medvfm, tmp_path, monkeypatch):
    text = " ".join(medvfm("quickstart", "--help").out.split())
    for words in ("--out PATH", "(default: runs/quickstart)", "--steps INT", "(default: 120)", "--seed INT"):
        assert words in text
    monkeypatch.setattr(command, "evaluate", None)  # would fail if it were called
    medvfm("quickstart", "--out", tmp_path / "q", "--steps", 0).refused("steps is 0; expected at least 1")
    medvfm("quickstart", "--out", tmp_path / "q", "--steps", "x").refused("--steps is 'x'", code=2)
    assert list(tmp_path.iterdir()) == []


def test_offline_with_an_empty_cache_is_one_sentence(medvfm, tmp_path):
    result = medvfm("quickstart", "--out", tmp_path / "q", "--offline")
    assert result.code == 1
    assert result.err.startswith("medvfm: ")
    assert "is not in the cache" in result.err
    assert result.err.count("\n") == 1
    assert contents(tmp_path) == {}


def test_from_nothing_to_a_report_and_again_without_work(medvfm, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "q"
    words = ("quickstart", "--out", folder, "--steps", 3)
    first = medvfm(*words, "--json")
    record = first.json
    assert record["report"] == str(folder / "report.html")
    for run in ("zero_shot", "adapted"):
        written = json.loads((folder / run / "scores.json").read_text())
        (dice,) = (r for r in written["summary"] if (r["metric"], r["label"]) == ("dice", "all"))
        assert record[run] == dice
        assert 0 <= dice["mean"] <= 1
    assert "demonstration, not evidence" in first.err
    _, metadata = artifacts.load_delta(folder / "adapted" / "delta.safetensors")
    assert (metadata["prompt"], metadata["channel_names"]) == ("none", ["MRI"])
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "zero_shot" in page
    assert "adapted" in page

    for work in ("evaluate", "adapt"):
        monkeypatch.setattr(command, work, None)  # would fail if it were called
    before = contents(folder)
    again = medvfm(*words)
    assert (again.code, again.err) == (0, "")
    assert contents(folder) == before
    lines = again.out.splitlines()
    assert f"{SAM} zero-shot, boxes from the reference: Dice {record['zero_shot']['mean']:.3f}" in again.out
    assert lines[-2].startswith(f"report: {folder / 'report.html'}")
    assert f"medvfm segment IMAGE --run {folder / 'adapted'}" in lines[-1]
    for other in (("--steps", 4), ("--seed", 1)):
        sentence = medvfm(*words, *other).refused("was started with", "choose another --out", code=1)
        assert other[0] in sentence
    assert contents(folder) == before


@pytest.mark.slow
def test_the_real_model_and_template(medvfm, tmp_path, monkeypatch):
    """Needs the network unless the cache of whoever runs it is filled; a third of the steps of adaptation."""
    monkeypatch.setenv(
        "MEDVFM_CACHE", os.environ.get("MEDVFM_REAL_CACHE", str(Path.home() / ".cache" / "medvfm"))
    )
    record = medvfm("quickstart", "--out", tmp_path / "q", "--steps", 40, "--json").json
    # One box around all grey matter says little about its folds: zero-shot scores low, as measured here.
    assert record["zero_shot"]["mean"] == pytest.approx(0.217, abs=0.01)
    assert record["adapted"]["mean"] > record["zero_shot"]["mean"]
    assert Path(record["report"]).stat().st_size > 10_000
