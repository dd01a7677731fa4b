"""Bytes, errors of codecs and noise of a federated run against closed forms."""

import math

import pytest

from medvfm_jax.settings import BadConfig
from medvfm_jax.settings.analyze import RatesConfig
from medvfm_jax.theory import analyze_rates
from medvfm_jax.types import MedvfmError

TINY = {"model": "sam-tiny-test", "presets": ("lora",), "epsilons": (8.0,)}
NUMBERS = 1_024  # of LoRA on this model, see tests/systems/test_every_system.py


@pytest.mark.slow
def test_bytes_and_errors_of_codecs():
    config = RatesConfig(
        **TINY, clients=20, participation=0.5, rounds=7, codecs=("identity", "int8", "top_k")
    )
    found = analyze_rates(config)
    whole, int8, top = found.codecs
    assert found.chosen == 10
    assert (whole.numbers, whole.upload, whole.total) == (NUMBERS, 4 * NUMBERS, 7 * 10 * 8 * NUMBERS)
    assert (whole.loss, whole.normal, whole.unbiased) == (0, 0, True)
    # Of leaves of 64 numbers: omega = d / (2 (2^8 - 1)^2), over ten clients.
    assert int8.loss == pytest.approx(64 / (2 * 255**2) / 10)
    assert 0 < int8.normal < int8.loss
    assert int8.upload == NUMBERS + 16 * 8  # two floats for each of 16 leaves
    # One of 64 is sent of each leaf.
    assert (top.unbiased, top.loss) == (False, pytest.approx(1 - 1 / 64))
    assert 0.8 < top.normal < top.loss


@pytest.mark.slow
def test_noise_of_clients_is_that_of_gaussians_without_sampling():
    """Full participation: z = sqrt(T) s, s the scale of one Gaussian; 5.998 at epsilon 8, T = 100, delta 1e-5."""
    found = analyze_rates(RatesConfig(**TINY, clients=25, rounds=100, codecs=("identity",)))
    (row,) = found.privacy
    assert row.multiplier == pytest.approx(6.0, rel=2e-3)
    assert row.noise.ratio == pytest.approx(row.multiplier * math.sqrt(NUMBERS) / 25)
    assert row.overall == pytest.approx(row.noise.ratio / 10)
    assert row.noise.clients_that_suffice == math.ceil(25 * row.noise.ratio)


def test_noise_of_patients_is_averaged_over_steps_and_hospitals():
    config = RatesConfig(
        **TINY,
        clients=4,
        rounds=5,
        local_steps=5,
        patients=3,
        batch_size=3,
        dp_unit="patient",
        codecs=("identity",),
    )
    (row,) = analyze_rates(config).privacy
    # Every patient is in every one of the 25 steps: a quarter of the sums of the test above, half its noise.
    assert row.multiplier == pytest.approx(3.0, rel=2e-3)
    assert row.noise.ratio == pytest.approx(row.multiplier * math.sqrt(NUMBERS) / 3 / math.sqrt(5 * 4))


def test_what_has_no_rates_is_refused():
    for wrong, said in (
        ({"epsilons": (0.0,)}, "all positive"),
        ({"epsilons": ()}, "one or more"),
        ({"codecs": ("int8", "int8")}, "int8 twice"),
        ({"participation": 0.0}, "participation is 0"),
        ({"patients": 0}, "patients is 0"),
        ({"classes": 1}, "classes is 1"),
    ):
        with pytest.raises(BadConfig, match=said):
            RatesConfig(**TINY | wrong)
    for wrong, said in (
        ({"codecs": ("int9",)}, "nearest is 'int8'"),
        ({"presets": ("lroa",)}, "nearest is 'lora'"),
        ({"model": "vit-tiny-test"}, "gives features"),
        ({"set": ("lora.rnak=2",)}, "rnak"),
    ):
        with pytest.raises(MedvfmError, match=said):
            analyze_rates(RatesConfig(**TINY | wrong))
