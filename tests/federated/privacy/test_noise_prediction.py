"""Noise before it is made: its norm as sampled, when it drowns, and what would help."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms.catalog import ALGORITHMS, noised_numbers, outline
from medvfm_jax.federated.privacy.client_level import noisy_mean
from medvfm_jax.federated.privacy.noise_prediction import predict_noise
from medvfm_jax.federated.privacy.patient_level import PatientBatch, patient_gradient
from medvfm_jax.federated.privacy.spending import plan
from medvfm_jax.settings.federate import FederateConfig
from tests.federated import cases

CONFIG = FederateConfig("data", out=Path("x"), rounds=20, dp_epsilon=8.0, dp_clip=0.3)
EIGHT = dict.fromkeys("abcdefgh", 20)


def test_the_predicted_norm_is_that_of_the_noise():
    d = 40_000
    found = plan(CONFIG, EIGHT)
    predicted = predict_noise(found, d, 8, 1.0)
    zeros = {"a": jnp.zeros((100, 300)), "b": jnp.zeros(d - 30_000)}
    noise = noisy_mean(zeros, 0.3, found.privacy, jax.random.key(0))
    assert predicted.norm == pytest.approx(float(optax.tree.norm(noise)), rel=0.02)
    assert predicted.norm == pytest.approx(found.privacy.noise_multiplier * 0.3 * 200 / 8)
    assert (predicted.signal, predicted.averaged) == (0.3, 1)


def test_the_predicted_norm_of_a_step_and_of_a_round_with_protected_patients():
    """A round averages the noise of its steps and hospitals; everybody in every step, so that accounting is quick."""
    d, steps = 20_000, 5
    config = dataclasses.replace(CONFIG, dp_unit="patient", batch_size=20, local_steps=steps)
    found = plan(config, EIGHT)
    predicted = predict_noise(found, d, 8, 0.5)
    gradient = jax.jit(patient_gradient(lambda delta, x, key: 0.0 * delta["w"].sum() * x, found.privacy))
    nobody = PatientBatch(jnp.zeros((1, 1)), jnp.zeros((1, 1), bool))
    draws = [gradient({"w": jnp.zeros(d)}, nobody, jax.random.key(i))[1]["w"] for i in range(4 * steps)]
    assert predicted.norm == pytest.approx(np.linalg.norm(draws[0]), rel=0.03)
    of_round = predicted.ratio * predicted.signal
    assert of_round == pytest.approx(np.linalg.norm(np.mean(draws, axis=0)), rel=0.03)
    assert predicted.averaged == 4 * steps


def test_eight_hospitals_and_four_and_a_half_million_parameters_are_drowned():
    found = plan(dataclasses.replace(CONFIG, dp_clip=1.0), EIGHT)
    predicted = predict_noise(found, 4_500_000, 8, 1.0)
    assert predicted.drowned
    assert predicted.ratio == pytest.approx(712, rel=0.01)
    sentence = predicted.sentence()
    for words in ("4500000 parameters", "712 times as much", "Noise drowns", "--dp-unit patient,"):
        assert words in sentence
    fits = predicted.parameters_that_fit
    assert f"at most {fits} trained parameters" in sentence
    assert not predict_noise(found, fits, 8, 1.0).drowned
    assert predict_noise(found, fits + 1, 8, 1.0).drowned
    enough = predicted.clients_that_suffice
    assert f"at least {enough} clients" in sentence
    for clients, drowned in ((enough, False), (enough - 1, True)):
        more = plan(dataclasses.replace(CONFIG, dp_clip=1.0), {str(i): 20 for i in range(clients)})
        assert predict_noise(more, 4_500_000, clients, 1.0).drowned == drowned


def test_a_run_with_enough_clients_is_told_its_noise_without_alarm():
    found = plan(CONFIG, {str(i): 1 for i in range(1000)})
    predicted = predict_noise(found, 10_000, 1000, 1.0)
    assert not predicted.drowned
    assert "drowns" not in predicted.sentence()
    assert predicted.record()["drowned"] is False


@pytest.mark.parametrize(
    ("name", "unit", "numbers"),
    [
        ("fedavg", "client", 13),
        ("scaffold", "client", 26),  # the change and the control variate
        ("qfedavg", "client", 14),
        ("ffa_lora", "client", 7),  # b and the norm
        ("fedsa_lora", "client", 9),  # a and the norm are sent,
        ("fedsa_lora", "patient", 13),  # and b trains as well
        ("ffa_lora", "patient", 7),
    ],
)
def test_what_is_noised_is_counted(name, unit, numbers):
    entry = ALGORITHMS[name]
    assert noised_numbers(entry, dict(entry.options), cases.delta(), unit) == numbers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("feddyn", "adds it 1 + m/N times"),
        ("qfedavg", "divides one noised part"),
        ("fedadam", "divides it by its own running size"),
    ],
)
def test_a_server_that_does_more_than_add_the_mean_is_named(name, words):
    applies = outline(ALGORITHMS[name], dict(ALGORITHMS[name].options)).applies
    sentence = predict_noise(plan(CONFIG, EIGHT), 100, 8, 1.0, applies).sentence()
    assert f"the server does not just add that mean: it {words}" in sentence
