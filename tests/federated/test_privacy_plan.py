"""The noise of a whole run: within the epsilon asked for, hardly below it, stated with everything it rests on."""

import dataclasses
from pathlib import Path

import pytest

from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.federated.privacy.accounting import _dp_accounting
from medvfm_jax.federated.privacy.gaussian import gaussian_epsilon
from medvfm_jax.federated.privacy_plan import plan

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


def test_a_hospital_smaller_than_a_batch_always_uses_everybody():
    found = plan(with_settings(dp_unit="patient"), {"tiny": 3})
    assert found.rates["tiny"] == 1.0
    assert "everyone in every step" in found.statement(10)
    assert gaussian_epsilon(1e-5, found.privacy.noise_multiplier, 30) == pytest.approx(8.0, rel=5e-3)


def test_a_drawn_share_of_the_clients_needs_less_noise():
    drawn = plan(with_settings(participation=0.25, rounds=2, dp_epsilon=2.0), dict.fromkeys("abcdefgh", 5))
    everyone = plan(with_settings(rounds=2, dp_epsilon=2.0), dict.fromkeys("abcdefgh", 5))
    assert drawn.privacy.expected_clients == 2.0
    assert drawn.privacy.noise_multiplier < everyone.privacy.noise_multiplier
    assert "with rate 0.25" in drawn.statement(2)
