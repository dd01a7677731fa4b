"""`medvfm federate`: what it takes, prints, leaves and refuses."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

import medvfm_jax.cli.federate as command
from medvfm_jax.federated.federate import FederateResult
from medvfm_jax.federated.federate_config import FederateConfig
from tests.cli.commands import contents, options
from tests.federated.small_federation import SMALL, build_models_once

ONE_ROUND = {"rounds": 1, "val_fraction": 0.0, "test_fraction": 0.34}  # of each site of the cells one to test


@pytest.fixture
def asked(monkeypatch):
    """The settings `federate` was called with, instead of a run."""
    seen = []

    def federate(config, display):
        seen.append(config)
        delta, scores = config.out / "delta.safetensors", config.out / "scores.json" if config.score else None
        return FederateResult(config.out, delta, None, 3, 0.5, 10.0, 20.0, None, scores)

    monkeypatch.setattr(command, "federate", federate)
    return seen


def words(data, out, **settings):
    return ["federate", *options(**(SMALL | ONE_ROUND | {"data": data, "out": out} | settings))]


def test_every_setting_of_the_python_interface_is_an_option(medvfm):
    text = medvfm("federate", "--help").out
    for field in fields(FederateConfig):
        assert f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}" in text


def test_words_become_settings(medvfm, asked, tmp_path):
    result = medvfm(
        "federate", "--data", "d", "--sites", "s.csv", "--preset", "lora", "--set", "lora.rank=8", "--algorithm",
        "fedprox", "--algorithm-set", "mu=0.1", "--rounds", 7, "--local-steps", 3, "--codec", "top_k", "--codec-set",
        "fraction=0.1", "--memory", "ef21", "--dp-epsilon", 8, "--dp-unit", "client", "--participation", 0.5,
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert result == (0, f"next: medvfm report {tmp_path / 'r'}\n", "")
    expected = FederateConfig(
        "d", sites=Path("s.csv"), preset="lora", set=("lora.rank=8",), algorithm="fedprox", algorithm_set=("mu=0.1",),
        rounds=7, local_steps=3, codec="top_k", codec_set=("fraction=0.1",), memory="ef21", dp_epsilon=8.0,
        participation=0.5, out=tmp_path / "r",
    )  # fmt: skip
    assert asked == [expected]
    medvfm("federate", "--data", "d")
    assert asked[1] == FederateConfig("d")


def test_from_words_to_a_report(medvfm, cells, tmp_path, monkeypatch):
    build_models_once(monkeypatch)
    result = medvfm(*words(cells, tmp_path / "fed", min_patients=3))
    assert result.code == 0, result.err
    assert "round 1/1  loss" in result.out
    assert "bright: 2 patients" in result.out
    assert result.out.endswith(f"next: medvfm report {tmp_path / 'fed'}\n")
    assert medvfm("report", tmp_path / "fed").code == 0
    page = (tmp_path / "fed" / "report.html").read_text()
    for heading in ("Sites", "Federation", "Clients", "Rounds"):
        assert f"<h2>{heading}</h2>" in page
    before = contents(tmp_path / "fed")
    medvfm(*words(cells, tmp_path / "fed")).refused("already holds a run; add --resume", code=1)
    assert contents(tmp_path / "fed") == before
    medvfm(*words(cells, tmp_path / "fed", min_patients=3, rounds=2), "--resume").refused(
        "was started with rounds=1, now it is 2", code=1
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"algorithm": "fedprx"}, "no algorithm 'fedprx', the nearest is 'fedprox'"),
        ({"preset": "fedmsaa"}, "no preset or system 'fedmsaa'; choose from samed,"),
        ({"algorithm_set": "mu=1"}, "algorithm fedavg has no option 'mu'; its options: server_rate"),
        ({"codec": "int9"}, "there is no codec 'int9'"),
        (
            {"codec": "top_k", "codec_set": "share=1"},
            "codec top_k has no option 'share'; its options: fraction",
        ),
        ({"codec": "top_k", "memory": "diana"}, "DIANA needs an unbiased codec, and top_k with these"),
        (
            {"codec": "drive", "memory": "diana"},
            "drive with these options is none; choose --codec from rand_k, uniform",
        ),
        ({"memory": "ef21"}, "memory=ef21 remembers the error of a codec"),
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
            {"algorithm": "scaffold", "dp_epsilon": 8, "dp_unit": "patient"},
            "averaged, not scaffold; choose from fedavg",
        ),
        ({"algorithm": "fedit"}, "No low-rank factors a and b among"),
        ({"algorithm": "fedper", "algorithm_set": "personal=x"}, "its pattern matches no part of it"),
        ({"min_patients": 4}, "No site of"),
        ({"partition": "patient", "clients": 7}, "6 patients of"),
        ({"sites": "nowhere.csv"}, "nowhere.csv cannot be read"),
        ({"preset": "fedsam", "set": "full.at=x"}, "The system fedsam fixes its adapter; leave --set out"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(
    medvfm, cells, tmp_path, monkeypatch, settings, sentence
):
    build_models_once(monkeypatch)
    medvfm(*words(cells, tmp_path / "run", **settings)).refused(sentence)
    assert not (tmp_path / "run").exists()


def test_without_the_extra_privacy_by_sampling_is_one_sentence(medvfm, cells, tmp_path, monkeypatch):
    build_models_once(monkeypatch)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    settings = {"dp_epsilon": 8, "dp_unit": "patient", "batch_size": 1}
    medvfm(*words(cells, tmp_path / "run", **settings)).refused("pip install 'medvfm-jax[privacy]'", code=1)
    assert not (tmp_path / "run").exists()
