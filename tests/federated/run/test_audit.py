"""The audit of finished runs: what it finds in them, what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.privacy import loss_attack
from medvfm_jax.federated.run import audit as module
from medvfm_jax.federated.run.audit import audit
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.audit import AuditConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.adaptation import adapt
from medvfm_jax.train.stored_delta import SETTINGS, ForeignDelta
from medvfm_jax.weights import artifacts
from tests.federated.small_federation import SMALL, small

pytestmark = pytest.mark.usefixtures("small_runs")

WANTED = {"val_fraction": 0.0, "test_fraction": 0.34, "rounds": 2, "score": False}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 12, size=32)


@pytest.fixture(scope="module")
def private(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "private"
    return federate(small(cells, out, dp_epsilon=2.0, dp_unit="client", dp_seed=5, **WANTED)).folder


@pytest.mark.slow
def test_a_private_run_is_held_against_its_claim(private, monkeypatch):
    found = audit(AuditConfig(private))
    canary, members = found["canary"], found["membership"]
    assert canary["claimed_epsilon"] == pytest.approx(2.0, rel=0.02)
    assert 0 < canary["lower_bound"] < 2 < canary["largest_possible"]
    assert not canary["contradicts"]
    assert found["not_private"].startswith("NOT PRIVATE: noise and samples were made from --dp-seed 5")
    assert (members["loss"]["members"], members["loss"]["others"]) == (8, 4)
    e = np.exp(canary["claimed_epsilon"])
    assert members["allowed_advantage"] == pytest.approx((e - 1 + 2e-5) / (e + 1))
    assert json.loads((private / "audit.json").read_text()) == {k: v for k, v in found.items() if k != "file"}

    # A mechanism with a tenth of the noise that was promised.
    honest = module.resolve

    def careless(config):
        run = honest(config)
        weak = run.privacy.privacy._replace(noise_multiplier=run.privacy.privacy.noise_multiplier / 10)
        return run._replace(privacy=_Claims(run.privacy._replace(privacy=weak), run.privacy))

    monkeypatch.setattr(module, "resolve", careless)
    again = audit(AuditConfig(private, out=private / "again.json"))
    assert again["canary"]["contradicts"]
    assert again["not_private"] is None
    few = audit(AuditConfig(private, trials=20, out=private / "few.json"))["canary"]
    assert few["largest_possible"] < 2
    assert not few["contradicts"]


class _Claims:
    """The noise of one plan with the claim of another."""

    def __init__(self, noise, claim):
        self.privacy, self.steps, self.mechanism = noise.privacy, noise.steps, None
        self.no_secret = None
        self.guarantee = claim.guarantee


@pytest.mark.slow
def test_losses_are_those_of_the_split_of_the_run_and_their_change_that_of_training(cells, tmp_path):
    """Members are the patients trained on, others those of the test; without training nothing changes."""
    config = AdaptConfig(
        str(cells), model=SMALL["model"], adapter="linear", prompt="box", steps=2, batch_size=2, prompts_per_image=2,
        val_fraction=0.0, test_fraction=0.34, validate_every=0, out=tmp_path / "run",
    )  # fmt: skip
    adapt(config)
    seen = {}
    real = module._losses

    def spy(audited, run, cases, *rest):
        seen[cases] = real(audited, run, cases, *rest)
        return seen[cases]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_losses", spy)
        found = audit(AuditConfig(config.out))
    split = json.loads((config.out / "config.json").read_text())["resolved"]["split"]
    assert list(seen) == [tuple(split["train"]), tuple(split["test"])]
    assert found["canary"] is None
    members, others = (seen[tuple(split[name])][0] for name in ("train", "test"))
    assert found["membership"]["loss"]["auc"] == loss_attack(members, others).auc
    # The change of loss is the loss minus that of the delta the run began with, so it is zero for that one.
    delta, about = artifacts.load_delta(config.out / "delta.safetensors")
    loaded = module.load_adapted(config.out / "delta.safetensors", model=None, dtype="float32")
    start = loaded.adapted.init(jax.random.fold_in(jax.random.key(config.seed), 1), loaded.base.params)
    artifacts.save_delta(config.out / "delta.safetensors", start, about)
    assert jax.tree.structure(start) == jax.tree.structure(delta)
    untouched = audit(AuditConfig(config.out))["membership"]["loss_change"]
    assert (untouched["auc"], untouched["advantage"]) == (0.5, 0.0)


@pytest.mark.slow
def test_a_run_without_prompts_whose_system_changed_the_decoder_is_audited(cells, tmp_path):
    settings = WANTED | {"rounds": 1, "local_steps": 1, "prompt": "none"}
    run = federate(small(cells, tmp_path / "run", **settings)).folder
    assert audit(AuditConfig(run))["membership"]["loss"]["members"] == 8


def test_what_cannot_be_audited_is_refused(cells, private, tmp_path):
    alone = federate(small(cells, tmp_path / "alone", algorithm="local", **WANTED)).folder
    with pytest.raises(BadConfig, match="trained every site alone"):
        audit(AuditConfig(alone))
    record = json.loads((private / "config.json").read_text())
    foreign = record | {"resolved": record["resolved"] | {"classes": 5}}
    (private / "config.json").write_text(json.dumps(foreign))
    with pytest.raises(ForeignDelta, match="its classes is 2"):
        audit(AuditConfig(private, trials=20))
    record["resolved"]["data_sha256"] = "0" * 64
    (private / "config.json").write_text(json.dumps(record))
    delta, metadata = artifacts.load_delta(private / "delta.safetensors")
    metadata = {name: value for name, value in metadata.items() if name != "medvfm_jax"}
    artifacts.save_delta(private / "delta.safetensors", delta, metadata | {SETTINGS: settings_digest(record)})
    with pytest.raises(BadConfig, match="are not those"):
        audit(AuditConfig(private, trials=20))
    with pytest.raises(BadConfig, match="trials is 3"):
        dataclasses.replace(AuditConfig(private), trials=3)
