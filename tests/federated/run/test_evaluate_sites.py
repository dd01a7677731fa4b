"""`evaluate --run` of a personalised run: each case with the model of its site, which the scores name."""

import json
import shutil

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated import BadFederation
from medvfm_jax.federated.run import evaluate_sites
from medvfm_jax.federated.run.evaluate_sites import evaluate
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.model_names import merged
from medvfm_jax.predict import evaluate as evaluate_shared
from medvfm_jax.predict import evaluation
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.report.record_shapes import damaged_scores
from medvfm_jax.report.run_record import load
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.stored_delta import SETTINGS
from medvfm_jax.weights import artifacts
from tests.federated.small_federation import small

PERSONAL = "personal=.*/output_hypernetworks_mlps_0/.*"
pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def personalised(tmp_path_factory):
    """A run whose clients, which are no sites of the data, keep a part of the model; must not be changed."""
    folder = tmp_path_factory.mktemp("personalised")
    cells = make_phantom_dataset(folder / "cells", "cells", 6, size=32)
    config = small(
        cells, folder / "run", partition="patient", clients=2, algorithm="fedper", rounds=1, local_steps=1,
        val_fraction=0.0, test_fraction=0.34, learning_rate=0.3, optimizer="sgd",
        set=(f"algorithm.{PERSONAL}",),
    )  # fmt: skip
    return federate(config)


def of_every_case(scores):
    return {row["case"]: f"the model of {row['site']}" for row in scores["cases"]}


@pytest.mark.slow
def test_each_case_is_scored_with_the_model_of_its_site(personalised, tmp_path):
    scores = json.loads(personalised.scores.read_text())
    again = evaluate(EvaluateConfig(run=personalised.folder, out=tmp_path / "scores.json"))
    assert again["cases"] == scores["cases"]
    assert len({row["site"] for row in scores["cases"]}) == 2
    assert again["scored_by"] == scores["scored_by"] == of_every_case(scores)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["scored_by"] == again["scored_by"]
    assert damaged_scores(written) is None, "the report takes it"
    assert damaged_scores(written | {"scored_by": {"case": 3}}) == "scored_by"


def test_a_run_whose_options_stand_in_lists_of_their_own_still_opens(personalised, tmp_path):
    """As earlier versions wrote them, with the digest they stored."""
    run = tmp_path / "run"
    shutil.copytree(personalised.folder, run)
    record = run_directory.read_record(run / run_directory.CONFIG)
    assert record["set"] == [f"algorithm.{PERSONAL}"]
    record |= {"set": [], "algorithm_set": [PERSONAL], "codec_set": [], "down_codec_set": []}
    run_directory.write_json(run / run_directory.CONFIG, record)
    for name in (run_directory.DELTA, run_directory.PERSONAL):
        delta, metadata = artifacts.load_delta(run / name)
        artifacts.save_delta(run / name, delta, metadata | {SETTINGS: settings_digest(record)})
    again = evaluate(EvaluateConfig(run=run, out=tmp_path / "scores.json"))
    assert again["cases"] == json.loads(personalised.scores.read_text())["cases"]
    assert load(run).config["algorithm_set"] == [PERSONAL]
    assert load_segmenter(run=run).note == ""


def test_another_part_of_a_site_changes_the_scores_of_this_site_alone(personalised, tmp_path):
    own, metadata = artifacts.load_delta(personalised.personal)
    first, second = sorted(own)
    run = tmp_path / "run"
    run.mkdir()
    for name in (run_directory.CONFIG, run_directory.DELTA):
        (run / name).write_bytes((personalised.folder / name).read_bytes())
    own[second] = jax.tree.map(lambda leaf: leaf - 100.0, own[second])
    artifacts.save_delta(run / run_directory.PERSONAL, own, metadata)
    before = json.loads(personalised.scores.read_text())["cases"]
    after = evaluate(EvaluateConfig(run=run, out=tmp_path / "scores.json"))["cases"]
    assert [row for row in after if row["site"] == first] == [row for row in before if row["site"] == first]
    assert [row for row in after if row["site"] == second] != [row for row in before if row["site"] == second]

    artifacts.save_delta(run / run_directory.PERSONAL, {first: {"else": {"x": np.ones(2)}}}, metadata)
    with pytest.raises(artifacts.BadDelta):
        evaluate(EvaluateConfig(run=run, out=tmp_path / "other.json"))


def test_whoever_scores_with_the_shared_model_alone_is_told(personalised, tmp_path, monkeypatch, capsys):
    module = evaluation
    monkeypatch.setattr(module, "score_cases", lambda *given: {})  # said before anything is scored
    evaluate_shared(EvaluateConfig(run=personalised.folder, out=tmp_path / "scores.json"))
    assert "every case is scored with the shared model" in " ".join(capsys.readouterr().err.split())


def test_a_run_without_a_shared_model_is_named(tmp_path):
    (tmp_path / run_directory.PERSONAL).touch()
    with pytest.raises(BadFederation, match="trained every site alone"):
        evaluate(EvaluateConfig(run=tmp_path))


def test_own_leaves_take_the_places_of_shared_ones():
    shared = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merged({"a": {"y": 5}}, shared) == {"a": {"x": 1, "y": 5}, "b": 3}
    assert shared == {"a": {"x": 1, "y": 2}, "b": 3}


@pytest.mark.slow
def test_the_encoder_of_a_personalised_run_may_run_elsewhere_if_it_is_shared(
    personalised, tmp_path, monkeypatch
):
    pytest.importorskip("onnxruntime")
    ours = json.loads(personalised.scores.read_text())
    asked = EvaluateConfig(run=personalised.folder, out=tmp_path / "scores.json", runtime="onnxruntime")
    theirs = evaluate(asked)
    assert theirs["scored_by"] == ours["scored_by"]
    for one, other in zip(ours["cases"], theirs["cases"], strict=True):
        assert one.get("dice") == pytest.approx(other.get("dice"), abs=2e-3)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert damaged_scores(written) is None, "the report takes it"
    assert damaged_scores(written | {"runtime": {"name": 3}}) == "runtime"
    monkeypatch.setattr(evaluate_sites, "touches_encoder", lambda delta: True)
    with pytest.raises(
        BadConfig, match="has an encoder of its own, which JAX alone can run; leave out --runtime"
    ):
        evaluate(asked)
