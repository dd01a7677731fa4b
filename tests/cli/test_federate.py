"""`medvfm federate`: what it takes, prints, leaves and refuses."""

import os
import signal
import sys
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import pytest

import medvfm_jax.cli.federate as command
from medvfm_jax.federated.run.federate import FederateResult
from medvfm_jax.runs.run_directory import read_json, read_metrics
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train import checkpoint
from medvfm_jax.weights import artifacts
from tests.cli.commands import contents, options
from tests.federated.small_federation import SMALL, build_models_once

ONE_ROUND = {"rounds": 1, "val_fraction": 0.0, "test_fraction": 0.34}  # of each site of the cells one to test


@pytest.fixture
def asked(monkeypatch):
    """The settings `federate` was called with, instead of a run."""
    seen = []

    def federate(config, display, placement):
        seen.append(config)
        delta, scores = config.out / "delta.safetensors", config.out / "scores.json" if config.score else None
        return FederateResult(config.out, delta, None, 3, 0.5, 10.0, 20.0, None, scores)

    monkeypatch.setattr(command, "federate", federate)
    return seen


def words(data, out, **settings):
    settings = SMALL | ONE_ROUND | {"data": data, "out": out} | settings
    switches = {name: value for name, value in settings.items() if isinstance(value, bool)}
    named = [f"--{'' if on else 'no-'}{name.replace('_', '-')}" for name, on in switches.items()]
    return ["federate", *options(**{n: v for n, v in settings.items() if n not in switches}), *named]


def test_every_setting_of_the_python_interface_is_an_option(medvfm):
    text = medvfm("federate", "--help").out
    for field in fields(FederateConfig):
        assert f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}" in text


def test_words_become_settings(medvfm, asked, tmp_path):
    result = medvfm(
        "federate", "--data", "d", "--sites", "s.csv", "--preset", "lora", "--set", "lora.rank=8", "--algorithm",
        "fedprox", "--set", "algorithm.mu=0.1", "--rounds", 7, "--local-steps", 3, "--codec", "top_k", "--set",
        "codec.fraction=0.1", "--memory", "ef21", "--dp-epsilon", 8, "--dp-unit", "client", "--participation", 0.5,
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert result == (0, f"next: medvfm report {tmp_path / 'r'}\n", "")
    expected = FederateConfig(
        "d", sites=Path("s.csv"), preset="lora",
        set=("lora.rank=8", "algorithm.mu=0.1", "codec.fraction=0.1"), algorithm="fedprox",
        rounds=7, local_steps=3, codec="top_k", memory="ef21", dp_epsilon=8.0,
        participation=0.5, out=tmp_path / "r",
    )  # fmt: skip
    assert asked == [expected]
    medvfm("federate", "--data", "d")
    assert asked[1] == FederateConfig("d")


PARTS = ("--algorithm", "fedprox", "--codec", "top_k", "--down-codec", "top_k", "--set", "head.at=.*head.*",
         "--set", "algorithm.mu=0.5", "--set", "codec.fraction=0.2", "--set", "down_codec.fraction=0.5")  # fmt: skip


def test_from_words_to_a_report(medvfm, cells, tmp_path, monkeypatch):
    build_models_once(monkeypatch)
    result = medvfm(*words(cells, tmp_path / "fed", min_patients=3), *PARTS)
    assert result.code == 0, result.err
    assert "round 1/1  loss" in result.out
    assert "bright: 2 patients" in result.out
    assert result.out.endswith(f"next: medvfm report {tmp_path / 'fed'}\n")
    record = read_json(tmp_path / "fed" / "config.json")
    assert record["set"] == [*PARTS[7::2]]
    taken = {name: record["resolved"][f"{name}_options"] for name in ("algorithm", "codec", "down_codec")}
    assert taken == {"algorithm": {"mu": 0.5}, "codec": {"fraction": 0.2}, "down_codec": {"fraction": 0.5}}
    assert medvfm("report", tmp_path / "fed").code == 0
    page = (tmp_path / "fed" / "report.html").read_text()
    for heading in ("Sites", "Federation", "Clients", "Rounds"):
        assert f"<h2>{heading}</h2>" in page
    before = contents(tmp_path / "fed")
    medvfm(*words(cells, tmp_path / "fed")).refused("already holds a run; add --resume", code=1)
    assert contents(tmp_path / "fed") == before
    medvfm(*words(cells, tmp_path / "fed", min_patients=3, rounds=2), *PARTS, "--resume").refused(
        "was started with rounds=1, now it is 2", code=1
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"algorithm": "fedprx"}, "no algorithm 'fedprx', the nearest is 'fedprox'"),
        ({"preset": "fedmsaa"}, "no system 'fedmsaa', the nearest is 'fedmsa'"),
        ({"set": "algorithm.mu=1"}, "algorithm fedavg has no option 'mu', known are server_rate"),
        ({"codec": "int9"}, "There is no codec 'int9', the nearest is 'int"),
        ({"down_codec": "int9"}, "There is no codec 'int9', the nearest is 'int"),
        ({"set": "down_codec.bits=4"}, "down-codec identity has no option 'bits', there are none"),
        (
            {"set": "algoritm.server_rate=1"},
            "has no option 'algoritm.server_rate', the nearest is 'algorithm.server_",
        ),
        ({"set": "server_rate=1"}, "has no option 'server_rate', the nearest is 'algorithm.server_rate'"),
        ({"set": "algorithm.server_rate"}, "is no setting: write part.option=value"),
        (
            {"codec": "top_k", "set": "codec.share=1"},
            "codec top_k has no option 'share', known are fraction",
        ),
        ({"codec": "top_k", "memory": "diana"}, "DIANA needs an unbiased codec, and top_k with these"),
        (
            {"codec": "drive", "memory": "diana"},
            "drive with these options is none; choose --codec from rand_k, uniform",
        ),
        ({"memory": "ef21"}, "memory=ef21 remembers the error of a codec"),
        (
            {"algorithm": "scaffold", "keep_optimizer": True},
            "scaffold cannot keep the optimizer's state between",
        ),
        ({"optimizer": "sgd", "keep_optimizer": True}, "Plain SGD has no state to keep between rounds"),
        ({"rules": "fsdp"}, "say which with --mesh"),
        (
            {"mesh": "clients=3"},
            "The mesh clients=3,replica=1,data=1,model=1 needs 3 devices and there are 8",
        ),
        ({"mesh": "clients=4,data=2"}, "4 devices on its axis clients and the run has 2 clients"),
        ({"mesh": "clients=1,data=8"}, "step of 2 images cannot be divided over 8 devices"),
        (
            {"mesh": "clients=2,data=2,model=2", "dp_epsilon": 8, "dp_unit": "patient"},
            "leave data=2 out of the mesh",
        ),
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"participation": 0}, "participation is 0.0; expected above 0 and at most 1"),
        ({"leave_out": "nowhere"}, "no client 'nowhere' to leave out; the clients are bright, dark"),
        (
            {"leave_out": "dark", "algorithm": "local"},
            "Local training has no model for a site that is left out",
        ),
        (
            {"algorithm": "local", "codec": "int8"},
            "algorithm=local sends nothing; leave --codec and --down-codec out",
        ),
        ({"algorithm": "scaffold", "down_codec": "int8"}, "receive other things than the delta"),
        ({"algorithm": "centralised", "dp_epsilon": 8}, "baseline without exchange and without noise"),
        (
            {"algorithm": "qfedavg", "dp_epsilon": 8, "dp_unit": "patient"},
            "Patient-level privacy puts noise on one gradient per local step, and qfedavg also takes",
        ),
        ({"algorithm": "fedit"}, "No low-rank factors a and b among"),
        (
            {"algorithm": "fedper", "set": "algorithm.personal=x"},
            "the pattern for personal parts matches no part of it",
        ),
        ({"min_patients": 4}, "No site of"),
        ({"partition": "patient", "clients": 7}, "6 patients of"),
        ({"sites": "nowhere.csv"}, "nowhere.csv cannot be read"),
        (
            {"preset": "fedsam", "set": "full.to=x"},
            "'fedsam' has no option 'full.to', the nearest is 'full.at'",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(
    medvfm, cells, tmp_path, monkeypatch, settings, sentence
):
    build_models_once(monkeypatch)
    medvfm(*words(cells, tmp_path / "run", **settings)).refused(sentence)
    assert not (tmp_path / "run").exists()


MESH = {
    "partition": "patient", "clients": 5, "test_fraction": 0, "score": False, "rounds": 2, "algorithm": "scaffold",
    "learning_rate": 0.1, "participation": 0.8, "checkpoint_every": 1,
}  # fmt: skip


def rounds_of(folder):
    clock = ("time", "seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_metrics(folder)]


@pytest.mark.slow
def test_clients_over_a_mesh_give_the_numbers_of_one_device_and_go_on_over_another(
    medvfm, cells, tmp_path, monkeypatch
):
    """Four of five clients over two devices, two parts of each step, then over four; weights divided at first."""
    build_models_once(monkeypatch)
    words_of = {name: words(cells, tmp_path / name, **MESH) for name in ("one", "mesh")}
    assert medvfm(*words_of["one"]).code == 0
    mesh = "clients=2,data=2,model=2", "--rules", "fsdp"
    stop_after_a_round(monkeypatch)
    assert medvfm(*words_of["mesh"], "--mesh", *mesh).code == 130
    monkeypatch.undo()
    build_models_once(monkeypatch)
    assert rounds_of(tmp_path / "mesh") != []
    assert not (tmp_path / "mesh" / "delta.safetensors").exists()
    result = medvfm(*words_of["mesh"], "--mesh", "clients=4,model=2", "--resume")
    assert result.code == 0, result.err
    one, mesh = (rounds_of(tmp_path / name) for name in words_of)
    assert [line.keys() for line in one] == [line.keys() for line in mesh]
    for a, b in zip(one, mesh, strict=True):
        for name, value in a.items():
            assert b[name] == (
                value if isinstance(value, list) else pytest.approx(value, rel=1e-4, abs=1e-7)
            ), name
    deltas = [artifacts.load_delta(tmp_path / name / "delta.safetensors")[0] for name in words_of]
    for a, b in zip(*map(jax.tree.leaves, deltas), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    record = read_json(tmp_path / "mesh" / "config.json")
    assert record["placement"] == {"mesh": {"clients": 2, "data": 2, "model": 2}, "rules": "fsdp"}
    assert record["keep_optimizer"] is False


def stop_after_a_round(monkeypatch):
    """Ask the process to end while it writes the checkpoint of the first round."""
    write = checkpoint.write

    def write_and_interrupt(folder, written):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(folder, written)

    monkeypatch.setattr(checkpoint, "write", write_and_interrupt)


def test_without_the_extra_privacy_by_sampling_is_one_sentence(medvfm, cells, tmp_path, monkeypatch):
    build_models_once(monkeypatch)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    settings = {"dp_epsilon": 8, "dp_unit": "patient", "batch_size": 1}
    medvfm(*words(cells, tmp_path / "run", **settings)).refused("pip install 'medvfm-jax[privacy]'", code=1)
    assert not (tmp_path / "run").exists()
