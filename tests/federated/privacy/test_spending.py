"""The noise of a whole run: within the epsilon asked for, hardly below it, stated with everything it rests on."""

import dataclasses
from pathlib import Path

import pytest

from medvfm_jax.federated.privacy.accounting import _dp_accounting
from medvfm_jax.federated.privacy.gaussian import gaussian_epsilon
from medvfm_jax.federated.privacy.spending import exposed, plan
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig

CONFIG = FederateConfig("data", out=Path("x"), rounds=10, local_steps=3, batch_size=4, dp_epsilon=8.0)
PATIENTS = {"large": 200, "small": 8}


def with_settings(**settings):
    return dataclasses.replace(CONFIG, **settings)


def test_without_epsilon_there_is_no_noise():
    assert plan(with_settings(dp_epsilon=None), PATIENTS) is None


def test_clients_that_all_take_part_follow_the_closed_form_and_need_no_extra(monkeypatch):
    monkeypatch.setattr("medvfm_jax.federated.privacy.accounting._dp_accounting", None)
    found = plan(CONFIG, PATIENTS)
    assert (found.privacy.unit, found.privacy.expected_clients, found.steps) == ("client", 2.0, 1)
    z = found.privacy.noise_multiplier
    assert gaussian_epsilon(1e-5, z, 10) == pytest.approx(8.0, rel=5e-3)
    assert gaussian_epsilon(1e-5, z, 10) <= 8.0
    assert found.guarantee(5).epsilon == gaussian_epsilon(1e-5, z, 5) < 8.0
    text = found.statement(10)
    for words in (
        "of one client (add or remove one)",
        "after 10 rounds",
        "everyone in every round",
        "not covered",
    ):
        assert words in text


def test_the_statement_names_what_is_recorded_and_not_covered():
    text = plan(CONFIG, PATIENTS).statement(10)
    assert "recorded and not covered: config.json (cases held out" in text
    for words in ("validation scores of each site", "scores and masks of the test patients", "checkpoints"):
        assert words in text
    for words in ("dp-log-unprotected", "NOT PRIVATE", "personal.safetensors"):
        assert words not in text
    silent = plan(with_settings(score=False, validate_every=0), PATIENTS).statement(10)
    assert "test patients" not in silent
    assert "validation scores" not in silent
    asked = plan(with_settings(dp_log_unprotected=True), PATIENTS, keeps=True).statement(10)
    assert "as asked for with --dp-log-unprotected, exact losses and norms, who took part" in asked
    assert "personal.safetensors" in asked
    # Scores of models without noise would tell who took part, so they need the flag.
    assert "validation scores" in asked
    assert "validation scores" not in plan(CONFIG, PATIENTS, keeps=True).statement(10)
    patient = plan(with_settings(dp_unit="patient", batch_size=200), PATIENTS, keeps=True).statement(10)
    assert "numbers of patients and images of a hospital" in patient
    assert "validation scores" in patient
    assert "personal.safetensors" not in patient


def test_a_run_from_a_number_says_that_it_is_not_private():
    text = plan(with_settings(dp_seed=3), PATIENTS).statement(10)
    assert text.startswith("NOT PRIVATE: noise and samples were made from --dp-seed 3")
    for setting in ({"dp_seed": 0}, {"dp_log_unprotected": True}):
        with pytest.raises(BadConfig, match="is about privacy; add --dp-epsilon"):
            with_settings(dp_epsilon=None, **setting)


@pytest.mark.slow
def test_patients_are_accounted_for_by_step_and_by_the_hospital_that_draws_them_most_often():
    _dp_accounting()
    found = plan(with_settings(dp_unit="patient"), PATIENTS)
    assert (found.privacy.unit, found.privacy.expected_clients, found.steps) == ("patient", 4.0, 3)
    assert dict(found.rates) == {"large": 4 / 200, "small": 0.5}
    assert found.worst == "small"
    spent = found.guarantee(10)
    assert spent.rounds == 30
    assert 7.9 < spent.epsilon <= 8.0
    assert found.guarantee(10, "large").epsilon < 0.5 * spent.epsilon
    assert found.guarantee(5).epsilon < spent.epsilon
    text = found.statement(10)
    for words in ("of one patient", "after 30 steps", "with rate 0.5 every step", "at 'small'"):
        assert words in text


@pytest.mark.slow
def test_every_step_of_a_round_is_accounted_for():
    """Centralised training makes the steps of all sites in a round."""
    _dp_accounting()
    patient = with_settings(dp_unit="patient", dp_epsilon=0.5)  # losses of much noise are quick to compose
    usual, more = plan(patient, {"everybody": 200}), plan(patient, {"everybody": 200}, steps=12)
    assert (usual.steps, more.steps) == (3, 12)
    assert more.guarantee(10).rounds == 120
    assert more.privacy.noise_multiplier > 1.05 * usual.privacy.noise_multiplier


def test_a_hospital_smaller_than_a_batch_always_uses_everybody():
    found = plan(with_settings(dp_unit="patient"), {"tiny": 3})
    assert found.rates["tiny"] == 1.0
    assert "everyone in every step" in found.statement(10)
    assert gaussian_epsilon(1e-5, found.privacy.noise_multiplier, 30) == pytest.approx(8.0, rel=5e-3)


@pytest.mark.slow
def test_a_drawn_share_of_the_clients_needs_less_noise():
    drawn = plan(with_settings(participation=0.25, rounds=2, dp_epsilon=2.0), dict.fromkeys("abcdefgh", 5))
    everyone = plan(with_settings(rounds=2, dp_epsilon=2.0), dict.fromkeys("abcdefgh", 5))
    assert drawn.privacy.expected_clients == 2.0
    assert drawn.privacy.noise_multiplier < everyone.privacy.noise_multiplier
    assert "with rate 0.25" in drawn.statement(2)


def test_embeddings_on_disk_are_named_where_who_was_drawn_is_hidden():
    """Times of their files give the order of drawing."""
    named = [
        any("embeddings on disk" in part for part in exposed(with_settings(**settings), "nothing"))
        for settings in (
            {"dp_unit": "patient", "embeddings": "disk"},
            {"participation": 0.5},
            {"dp_unit": "patient", "embeddings": "memory"},
            {"embeddings": "disk"},  # all clients in every round
        )
    ]
    assert named == [True, True, False, False]
