"""`medvfm evaluate`: scores of a run or of a model as it is, printed, as JSON, and written."""

import json
import shutil

import numpy as np
import pytest

import medvfm_jax.cli.evaluate as command
from medvfm_jax.predict import evaluation
from medvfm_jax.runs.seen_cases import Seen
from medvfm_jax.settings import EvaluateConfig
from tests.cli.commands import SAM, contents

MODULE = evaluation


class Everything:
    """A predictor for which each box is full; nothing is compiled."""

    def __init__(self, *_, flips, overlap, encoder=None):
        self.flips = flips

    def label_map(self, picture, queries, values):
        out = np.zeros(picture.shape[:2], np.int32)
        for query, value in zip(queries, values, strict=True):
            x0, y0, x1, y1 = np.asarray(query.box, int)
            out[y0 : y1 + 1, x0 : x1 + 1] = value
        return out


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(MODULE, "Predictor", Everything)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the small run, to write into."""
    return shutil.copytree(trained, tmp_path / "run")


def test_words_become_settings(medvfm, monkeypatch, tmp_path):
    asked = []

    def evaluate(config, console):
        asked.append(config)
        return {"file": "s.json"}

    monkeypatch.setattr(command, "evaluate", evaluate)
    words = ("evaluate", "--run", tmp_path, "--split", "val", "--flips", "--cases", 3, "--profile", "nnunet")
    assert medvfm(*words, "--json").json == {"file": "s.json"}
    assert asked == [EvaluateConfig(run=tmp_path, split="val", flips=True, cases=3, profile="nnunet")]


def test_the_scores_of_a_real_run_as_json_are_those_that_are_written(medvfm, scored):
    written = json.loads((scored / "scores.json").read_text())
    assert written["model"] == f"{SAM} + linear"
    assert 0 <= written["summary"][0]["mean"] <= 1
    assert [p.suffix for p in (scored / "predictions").iterdir()] == [".png"] * written["n_cases"]


def said(cells):
    """What every command says about the phantom cells."""
    return f"note: numbers in 6 masks of {cells}: 0 background, 255 foreground\n"


def test_a_table_for_people_and_one_object_for_programs(medvfm, run, cells, plain):
    result = medvfm("evaluate", "--run", run)
    assert (result.code, result.err) == (0, said(cells))
    written = json.loads((run / "scores.json").read_text())
    assert f"{SAM} + linear, box prompts from the reference" in result.out
    (dice,) = (row for row in written["summary"] if (row["metric"], row["label"]) == ("dice", "foreground"))
    assert f"{dice['mean']:.4f}" in result.out
    assert 0.6 < dice["mean"] < 1  # full boxes around discs
    assert result.out.splitlines()[-1] == f"scores: {run / 'scores.json'}; next: medvfm report {run}"
    again = medvfm("evaluate", "--run", run, "--json")
    assert again.err == said(cells)
    changed = ("provenance", "file")
    assert {k: v for k, v in again.json.items() if k not in changed} == {
        k: v for k, v in written.items() if k not in changed
    }
    assert again.json["file"] == str(run / "scores.json")


def test_a_model_as_it_is(medvfm, cells, plain, tmp_path):
    words = (
        "evaluate",
        "--model",
        SAM,
        "--data",
        cells,
        "--split",
        "all",
        "--out",
        tmp_path / "new" / "zero.json",
    )
    result = medvfm(*words)
    assert result.code == 0
    assert result.out.splitlines()[-1] == f"scores: {tmp_path / 'new' / 'zero.json'}"
    assert json.loads((tmp_path / "new" / "zero.json").read_text())["n_cases"] == 6
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "overlays_zero", "predictions_zero", "zero.json",
    ]  # fmt: skip


def test_scores_replace_scores_and_nothing_else(medvfm, run, plain, tmp_path):
    (tmp_path / "table.csv").write_text("mine")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "mine.png").write_text("mine")
    before = contents(tmp_path)
    for name in ("table.csv", "list.json", "predictions"):
        sentence = medvfm("evaluate", "--run", run, "--out", tmp_path / name).refused(code=1)
        assert f"{tmp_path / name} exists and holds no scores; choose another --out" in sentence
    sentence = medvfm("evaluate", "--run", run, "--out", tmp_path / "scores.json").refused(code=1)
    assert "predictions exists, but no scores.json it belongs to" in sentence
    medvfm("evaluate", "--run", run, "--out", tmp_path / "table.csv" / "s.json").refused(code=1)
    assert contents(tmp_path) == before
    for _ in range(2):
        assert medvfm("evaluate", "--run", run, "--out", tmp_path / "s.json").code == 0


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "needs either --run RUN or --model NAME"),
        (("--run", "RUN", "--model", SAM), 2, "and not both"),
        (("--model", SAM), 2, "records no data: add --data FOLDER"),
        (("--run", "RUN", "--delta", "d"), 2, "give --delta with --model"),
        (("--run", "RUN", "--cases", 0), 2, "cases is 0; expected at least 1"),
        (("--run", "RUN", "--profile", "strit"), 1, "no metric profile 'strit', the nearest is 'strict'"),
        (("--run", "RUN", "--prompt", "none"), 1, "cannot be scored with none"),
        (("--run", "NOWHERE"), 1, "config.json does not exist; is"),
        (("--run", "RUN", "--data", "NOWHERE"), 1, "is not a folder"),
        (("--model", SAM, "--data", "CELLS", "--prompt", "none"), 1, "gives no class labels"),
        (("--model", "vit-tiny-test", "--data", "CELLS"), 1, "gives features, not masks"),
        (("--model", "sam-tiny-tset", "--data", "CELLS"), 1, "the nearest is 'sam-tiny-test'"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    medvfm, run, cells, plain, tmp_path, monkeypatch, words, code, sentence
):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    places = {"RUN": run, "CELLS": cells, "NOWHERE": tmp_path / "nowhere"}
    medvfm("evaluate", *(places.get(word, word) for word in words)).refused(sentence, code=code)
    assert contents(tmp_path) == before


def test_cases_that_a_teacher_has_seen_are_named_beside_their_scores(medvfm, run, monkeypatch):
    resolved = json.loads((run / "config.json").read_text())["resolved"]
    seen = Seen(resolved["data_sha256"], frozenset(resolved["split"]["test"]))
    monkeypatch.setattr("medvfm_jax.predict.evaluated_cases.seen_by", lambda record: (seen,))
    said = medvfm("evaluate", "--run", run, "--json")
    assert "of 1 case 1 had been seen in training, by the run or by a teacher" in said.err
    (found,) = [one for one in said.json["checked"]["findings"] if one["kind"] == "seen in training"]
    assert found["cases"] == sorted(seen.cases)


def test_a_run_that_has_not_ended(medvfm, run):
    (run / "delta.safetensors").unlink()
    before = contents(run)
    medvfm("evaluate", "--run", run).refused(
        "the run has not ended; continue it with the command and the settings", code=1
    )
    assert contents(run) == before


def test_an_unreadable_case_may_be_skipped_and_is_counted(medvfm, cells, plain, tmp_path):
    data = shutil.copytree(cells, tmp_path / "cells")
    (data / "images" / "cell_002.png").write_bytes(b"")
    words = ("evaluate", "--model", SAM, "--data", data, "--split", "all", "--out", tmp_path / "s.json")
    medvfm(*words).refused("cell_002.png is empty (0 bytes)", code=1)
    record = medvfm(*words, "--skip-bad", "--json").json
    assert [entry["case"] for entry in record["skipped"]] == ["cell_002"]
    assert record["n_cases"] == 5


def test_an_interrupted_evaluation_leaves_no_scores_and_can_be_repeated(medvfm, run, cells, monkeypatch):
    class Interrupted(Everything):
        def label_map(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "Predictor", Interrupted)
    result = medvfm("evaluate", "--run", run)
    interrupted = "medvfm: interrupted; what was committed so far is kept\n"
    assert (result.code, result.err) == (130, said(cells) + interrupted)
    assert not (run / "scores.json").exists()
    monkeypatch.setattr(MODULE, "Predictor", Everything)
    assert medvfm("evaluate", "--run", run).code == 0
