"""What an adversary sees of a run's mechanism: signal and noise of the canary's score against their closed forms."""

from functools import partial

import jax
import numpy as np
import pytest

from medvfm_jax.federated.codecs import make_codec
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy import account, canary_scores, canary_update, epsilon_lower_bound
from medvfm_jax.federated.privacy.discrete import choose
from medvfm_jax.federated.run.canary_release import client_release, noisy_sum_release, patient_release, zeros

CLIP, Z, EXPECTED, ROUNDS, TRIALS = 0.7, 2.0, 4.0, 3, 3000


def scores(release, seed=0):
    canary = canary_update(jax.random.key(5), zeros(64), 10 * CLIP)
    present, absent = jax.jit(lambda k: canary_scores(release, canary, TRIALS, k, batch=500))(
        jax.random.key(seed)
    )
    return np.asarray(present) * 10, np.asarray(absent) * 10  # in clips instead of canaries


def privacy(unit, z=Z):
    return Privacy(CLIP, z, EXPECTED, unit=unit)


@pytest.mark.parametrize(
    "release",
    [
        partial(client_release, privacy("client"), make_codec("identity"), ROUNDS),
        partial(patient_release, privacy("patient"), ROUNDS),
    ],
    ids=["client", "patient"],
)
def test_a_canary_counts_its_clip_over_the_expected_number_in_each_sum(release):
    present, absent = scores(release(1.0))
    assert present.mean() - absent.mean() == pytest.approx(ROUNDS / EXPECTED, rel=0.12)
    assert absent.std() == pytest.approx(Z * np.sqrt(ROUNDS) / EXPECTED, rel=0.04)
    sampled, _ = scores(release(0.25))
    assert sampled.mean() - absent.mean() == pytest.approx(0.25 * ROUNDS / EXPECTED, abs=0.09)
    claimed = account(privacy("client"), rounds=ROUNDS, delta=1e-5, accountant="exact").epsilon
    found = epsilon_lower_bound(present, absent, 1e-5)
    assert 0.2 < found.epsilon < claimed


@pytest.mark.slow
def test_noise_of_the_clients_is_in_the_score():
    """Three of four answer: one clip over the fixed four, and three shares of the noise of a round."""
    mechanism = choose(privacy("client")._replace(neighbours="zero out one"), 64, 16)
    present, absent = scores(noisy_sum_release(mechanism, 3, ROUNDS))
    assert present.mean() - absent.mean() == pytest.approx(ROUNDS / EXPECTED, rel=0.12)
    assert absent.std() == pytest.approx(Z * np.sqrt(ROUNDS * 3 / 4) / EXPECTED, rel=0.04)


def test_too_little_noise_is_found():
    claimed = account(privacy("client"), rounds=ROUNDS, delta=1e-5, accountant="exact").epsilon
    broken = client_release(privacy("client", z=0.2), make_codec("identity"), ROUNDS, 1.0)
    assert epsilon_lower_bound(*scores(broken), 1e-5).contradicts(claimed)
