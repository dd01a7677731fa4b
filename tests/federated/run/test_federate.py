"""Whole federated runs on small phantoms: what they leave behind, resume, baselines, privacy, personal parts."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.federated.run.site_scores import site_scores
from medvfm_jax.predict import evaluate
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.train import checkpoint
from medvfm_jax.train.loop import numbers_of
from medvfm_jax.train.task import make_loss
from medvfm_jax.weights import artifacts, load
from tests.federated.small_federation import SMALL, small

pytestmark = pytest.mark.usefixtures("small_runs")

SITES = ["bright", "dark"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Twelve pictures of 32 × 32 pixels at two sites."""
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 12, size=32)


@pytest.fixture(scope="module")
def finished(cells, tmp_path_factory):
    """The result of a small run; its folder must not be changed."""
    return federate(small(cells, tmp_path_factory.mktemp("runs") / "fed"))


def record_of(folder):
    return json.loads((folder / "config.json").read_text())


def rounds_of(folder):
    return [line for line in read_metrics(folder) if "upload_bytes" in line]


def test_a_run_leaves_behind_what_it_did_and_what_was_learnt(finished):
    folder = finished.folder
    resolved = record_of(folder)["resolved"]
    assert [(h["client"], h["patients"], h["images"]) for h in resolved["holdings"]] == [
        ("bright", 4, 4),
        ("dark", 4, 4),
    ]
    assert sum(len(part) for part in resolved["split"].values()) == 12
    delta, metadata = artifacts.load_delta(finished.delta)
    artifacts.check_base(metadata, load(SMALL["model"])[1])
    assert (metadata["preset"], metadata["algorithm"], metadata["privacy"]) == ("linear", "fedavg", None)
    assert any(leaf.any() for leaf in jax.tree.leaves(delta))
    assert finished.personal is None
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]


def test_every_round_is_logged_with_its_traffic_and_every_site_is_validated(finished):
    lines = rounds_of(finished.folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    size = sum(leaf.size for leaf in jax.tree.leaves(artifacts.load_delta(finished.delta)[0]))
    for line in lines:
        assert line["upload_bytes"] == line["download_bytes"] == 2 * 4 * size
        assert (line["participants"], line["excluded"]) == (2, [])
        assert np.isclose(line["loss"], np.mean([line[f"loss/{site}"] for site in SITES]))
    assert finished.upload_bytes == 3 * 2 * 4 * size
    assert lines[0]["lr"] == pytest.approx(SMALL["learning_rate"])
    assert lines[2]["lr"] < lines[1]["lr"] < lines[0]["lr"]
    validated = [line for line in read_metrics(finished.folder) if "val_dice" in line]
    assert [line["step"] for line in validated] == [1, 2, 3]
    for line in validated:
        each = [line[f"val_dice/{site}"] for site in SITES]
        assert line["val_dice"] == pytest.approx(np.mean(each))
        assert line["val_worst"] == min(each)
    assert finished.val_dice == max(line["val_dice"] for line in validated)


def test_evaluate_gives_the_scores_of_the_run(finished, tmp_path):
    scores = json.loads(finished.scores.read_text())
    assert {row["site"] for row in scores["cases"]} == set(SITES)
    assert [score.n for score in site_scores(scores["cases"])] == [1, 1]
    again = evaluate(EvaluateConfig(run=finished.folder, out=tmp_path / "scores.json"))
    assert again["cases"] == scores["cases"]
    assert again["provenance"]["data_sha256"] == scores["provenance"]["data_sha256"]


def interrupted_run(config, monkeypatch, after):
    """The run of ``config``, asked to end while it writes the checkpoint of round ``after``, then resumed."""
    write = checkpoint.write

    def write_and_interrupt(folder, written, *rest, **more):
        if written.step == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(folder, written, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", write_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            federate(config)
    assert not (config.out / run_directory.DELTA).exists()
    return federate(dataclasses.replace(config, resume=True))


RESUMED: dict[str, dict] = {
    "fedavg": {"down_codec": "int8", "down_memory": "error_feedback"},
    "compressed": {
        "algorithm": "scaffold",
        "codec": "int8",
        "memory": "error_feedback",
        "participation": 0.5,
        "val_fraction": 0.0,
    },
    "private": {
        "dp_epsilon": 8.0,
        "dp_unit": "patient",
        "batch_size": 6,  # everybody in every step, for which the accountant is quick
        "dp_seed": 1,  # two runs are compared; test_private_runs.py resumes one with a secret
        "dp_log_unprotected": True,
        "algorithm": "fedper",
        "val_fraction": 0.0,
        "set": ("algorithm.personal=.*/output_hypernetworks_mlps_0/.*",),
    },
}


@pytest.mark.parametrize(
    "name", [name if name == "fedavg" else pytest.param(name, marks=pytest.mark.slow) for name in RESUMED]
)
def test_an_interrupted_run_ends_with_the_same_bits(cells, tmp_path, monkeypatch, name):
    settings = RESUMED[name] | {"score": False}
    whole = federate(small(cells, tmp_path / "whole", **settings))
    resumed = interrupted_run(small(cells, tmp_path / "resumed", **settings), monkeypatch, 1)
    for file in (run_directory.DELTA, *([run_directory.PERSONAL] if whole.personal else [])):
        assert (whole.folder / file).read_bytes() == (resumed.folder / file).read_bytes()
    clock = ("time", "seconds")
    logs = [
        [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(r.folder)]
        for r in (whole, resumed)
    ]
    assert logs[0] == logs[1]
    assert whole._replace(folder=None, delta=None, personal=None) == resumed._replace(
        folder=None, delta=None, personal=None
    )


@pytest.mark.slow
def test_one_round_of_one_step_is_a_step_along_the_weighted_gradient(cells, tmp_path):
    config = small(
        cells, tmp_path, optimizer="sgd", learning_rate=0.1, clip_norm=0.0, local_steps=1,
        val_fraction=0.0, test_fraction=0.25,
    )  # fmt: skip
    run = resolve(config)
    loss = make_loss(run.adapted, run.record["resolved"]["objective"])
    data = next(RoundLoader(run.clients, config, 1, lambda number: 1.0, lambda batch: batch, "none"))
    weights = np.array([3.0, 1.0], np.float32)
    data = data._replace(shard=data.shard._replace(samples=weights))
    step = RoundStep(run, loss)
    state, metrics = step(step.init(data), data)

    @jax.jit
    def gradient(params, batch):
        return jax.value_and_grad(lambda delta: loss(params, delta, batch, None)[0])(run.delta)

    each = [gradient(run.base.params, jax.tree.map(lambda x: x[i, 0], data.shard.batches)) for i in (0, 1)]  # noqa: B023
    expected = jax.tree.map(lambda a, b: -0.1 * (0.75 * a + 0.25 * b), each[0][1], each[1][1])
    for found, wanted in zip(
        jax.tree.leaves(step.models(state).shared), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert numbers_of(metrics)["loss/dark"] == pytest.approx(float(each[1][0]), rel=1e-5)


@pytest.mark.slow
def test_local_training_has_a_model_per_site_and_none_for_all(cells, tmp_path):
    result = federate(small(cells, tmp_path / "local", algorithm="local", rounds=2))
    assert result.delta is None
    assert (result.upload_bytes, result.download_bytes) == (0, 0)
    own, _ = artifacts.load_delta(result.personal)
    assert sorted(own) == SITES
    pairs = zip(jax.tree.leaves(own["bright"]), jax.tree.leaves(own["dark"]), strict=True)
    assert any((a != b).any() for a, b in pairs)
    assert len(json.loads(result.scores.read_text())["cases"]) == 2 * 2  # a class and the instances of each


@pytest.mark.slow
def test_centralised_training_takes_as_many_steps_as_all_clients_together(cells, tmp_path):
    result = federate(small(cells, tmp_path / "central", algorithm="centralised", rounds=2, score=False))
    assert result.personal is None
    assert result.delta.exists()
    record = record_of(result.folder)
    assert record["resolved"]["training_patients"] == {"everybody": 8}
    assert [h["client"] for h in record["resolved"]["holdings"]] == SITES
    validated = [line for line in read_metrics(result.folder) if "val_dice" in line]
    assert all(f"val_dice/{site}" in validated[-1] for site in SITES)


@pytest.mark.slow
def test_a_site_left_out_is_tested_and_nobody_trains_on_it(cells, tmp_path, finished):
    result = federate(small(cells, tmp_path / "run", leave_out="dark", rounds=1))
    resolved, whole = record_of(result.folder)["resolved"], record_of(finished.folder)["resolved"]
    assert resolved["split"]["test"] == whole["split"]["test"]
    assert resolved["split"]["train"] == [
        c for c in whole["split"]["train"] if int(c[-3:]) % 2
    ]  # odd ones are bright
    assert list(resolved["training_patients"]) == ["bright"]
    assert {row["site"] for row in json.loads(result.scores.read_text())["cases"]} == set(SITES)


@pytest.mark.slow
def test_patients_are_protected_as_far_as_was_asked_for(cells, tmp_path):
    result = federate(
        small(cells, tmp_path / "run", dp_epsilon=2.0, dp_unit="patient", rounds=2, score=False, codec="int8")
    )
    lines = rounds_of(result.folder)
    assert lines[0]["epsilon"] < lines[1]["epsilon"] <= 2.0
    assert lines[1]["epsilon"] > 1.95
    assert result.val_dice is None  # the last round is kept: choosing one would look at patients
    assert "of one patient (add or remove one)" in result.privacy
    assert lines[0]["upload_bytes"] < lines[0]["download_bytes"] / 3
    # Whether an update is finite follows from noisy gradients; losses and times do not.
    assert set(lines[0]) == {"step", "upload_bytes", "download_bytes", "excluded", "epsilon", "lr"}
    validated = [line for line in read_metrics(result.folder) if "val_dice" in line]
    assert "val_dice/dark" in validated[0]
    assert "time" not in validated[0]
    assert "validation scores of each site in metrics.jsonl, exact" in result.privacy
    assert artifacts.load_delta(result.delta)[1]["privacy"] == record_of(result.folder)["resolved"]["privacy"]


@pytest.mark.slow
def test_noise_on_clients_is_found_and_recorded(cells, tmp_path):
    result = federate(small(cells, tmp_path / "run", dp_epsilon=4.0, rounds=1, score=False, dp_clip=0.1))
    resolved = record_of(result.folder)["resolved"]
    delta, _ = artifacts.load_delta(result.delta)
    values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(delta)])
    # One round: the mean of clipped changes plus noise of deviation z C / N.
    assert values.std() == pytest.approx(resolved["noise_multiplier"] * 0.1 / 2, rel=0.15)
    assert "of one client" in result.privacy


@pytest.mark.slow
def test_a_partition_of_its_own_with_scanners_of_their_own(cells, tmp_path, finished):
    result = federate(
        small(
            cells, tmp_path / "run", partition="intensity", clients=3, shift=0.8, rounds=1, validate_every=0
        )
    )
    resolved = record_of(result.folder)["resolved"]
    assert list(resolved["shifts"]) == ["client_0", "client_1", "client_2"]
    assert resolved["data_sha256"] != record_of(finished.folder)["resolved"]["data_sha256"]
    tested = {row["site"] for row in json.loads(result.scores.read_text())["cases"]}
    assert tested
    assert tested <= set(resolved["shifts"])


@pytest.mark.slow
def test_a_diverging_client_is_left_out_and_named(cells, tmp_path, capsys):
    """A learning rate that makes everybody's update infinite leaves the shared model as it was."""
    result = federate(
        small(
            cells, tmp_path / "run", optimizer="sgd", learning_rate=1e38, clip_norm=0.0, rounds=1, score=False
        )
    )
    assert rounds_of(result.folder)[0]["excluded"] == SITES
    assert not any(leaf.any() for leaf in jax.tree.leaves(artifacts.load_delta(result.delta)[0]))
    assert "round 1: dark left out, its update was not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_rounds_without_a_sum_are_told_and_counted(cells, tmp_path, capsys):
    """Nearly everybody vanishes, so nothing is opened: no loss counts, no model moves, and all of it is said."""
    lonely = {"secure_aggregation": True, "score": False, "val_fraction": 0.0, "rounds": 2, "local_steps": 1}
    config = small(cells, tmp_path / "run", dropout=0.999, **lonely)
    result = federate(config)
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert "must, so many rounds will have no sum" in text
    assert "round 1: no sum, because too few clients answered; nothing changed" in text
    assert "2 of 2 rounds had no sum" in text
    assert "loss 0" not in text
    lines = run_directory.read_metrics(result.folder)
    assert [(line["no_sum"], line["participants"], "loss" in line) for line in lines] == [
        (True, 0, False)
    ] * 2
    delta = artifacts.load_delta(result.delta)[0]
    jax.tree.map(np.testing.assert_array_equal, delta, dict(resolve(config).delta))

    with pytest.raises(BadFederation, match="no round could ever have one"):
        federate(small(cells, tmp_path / "alone", participation=0.5, **lonely))
    assert not (tmp_path / "alone" / "config.json").exists()
