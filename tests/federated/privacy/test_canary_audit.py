import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy.accounting import account
from medvfm_jax.federated.privacy.canary_audit import (
    canary_scores,
    canary_update,
    clopper_pearson,
    epsilon_lower_bound,
)
from medvfm_jax.federated.privacy.client_level import noisy_mean
from medvfm_jax.federated.privacy.clipping import clip_by_norm, global_norm
from medvfm_jax.federated.privacy.errors import BadPrivacy

DELTA = 1e-5
PRIVACY = Privacy(clip=0.5, noise_multiplier=1.0, expected_clients=4.0)
OTHERS = {
    "a": jnp.linspace(-0.2, 0.3, 12).reshape(3, 4),
    "b": jnp.ones(5),
}  # what the other clients add up to


@pytest.fixture(scope="module")
def scores():
    """Scores of the real clip and noise; `scale` stretches the canary, `noisy` may be forgotten."""

    @jax.jit
    def run(scale, noisy, clipped):
        def release(key, update):
            update = jax.tree.map(lambda x: scale * x, update)
            update = jax.tree.map(
                lambda a, b: jnp.where(clipped, a, b), clip_by_norm(update, PRIVACY.clip), update
            )
            total = jax.tree.map(jnp.add, OTHERS, update)
            mean = noisy_mean(total, PRIVACY.clip * noisy, PRIVACY, key)
            return jax.tree.map(lambda x: x * PRIVACY.expected_clients, mean)

        canary = canary_update(jax.random.key(0), OTHERS, PRIVACY.clip)
        return canary_scores(release, canary, 20000, jax.random.key(1), batch=1000)

    return run


def claimed():
    return account(PRIVACY, rounds=1, delta=DELTA, accountant="exact").epsilon


def test_the_audit_of_a_right_mechanism_stays_below_the_claim_but_not_far(scores):
    present, absent = scores(1.0, 1.0, True)
    # With the canary scores are N(1 + c, z²), without N(c, z²): nothing is lost between update and score.
    assert np.mean(present) - np.mean(absent) == pytest.approx(1.0, abs=0.05)
    assert np.std(present) == pytest.approx(PRIVACY.noise_multiplier, rel=0.03)
    audit = epsilon_lower_bound(present, absent, DELTA)
    assert 1.5 < audit.epsilon < claimed()
    assert not audit.contradicts(claimed())


@pytest.mark.parametrize(
    "mistake", [(1.0, 0.25, True), (4.0, 1.0, False)], ids=["too little noise", "no clipping"]
)
def test_the_audit_finds_a_broken_mechanism(scores, mistake):
    assert epsilon_lower_bound(*scores(*mistake), DELTA).contradicts(claimed())


def test_a_long_canary_is_clipped_to_the_same_score(scores):
    for a, b in zip(scores(4.0, 1.0, True), scores(1.0, 1.0, True)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert global_norm(canary_update(jax.random.key(3), OTHERS, 0.7)) == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.5, None])
def test_the_bound_exceeds_the_truth_no_more_often_than_it_says(threshold):
    """Randomised response is exactly ε-private: the truth is told with probability e^ε / (1 + e^ε)."""
    rng, epsilon, repeats = np.random.default_rng(0), 1.2, 400
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))
    wrong = 0
    for _ in range(repeats):
        answers = rng.random((2, 300)) < [[truth], [1 - truth]]
        wrong += epsilon_lower_bound(*answers, 0.0, confidence=0.8, threshold=threshold).epsilon > epsilon
    assert wrong <= stats.binom(repeats, 0.2).ppf(0.999)
    assert wrong > 0 or threshold is None  # a bound that is never wrong would be loose


def test_more_runs_bring_the_bound_to_the_truth():
    rng, epsilon = np.random.default_rng(1), 1.2
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))
    bounds = []
    for runs in (100, 1000, 100000):
        answers = rng.random((2, runs)) < [[truth], [1 - truth]]
        bounds.append(epsilon_lower_bound(*answers, 0.0).epsilon)
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(epsilon, abs=0.05)


def test_clopper_pearson_is_the_tail_of_the_binomial():
    low, high = clopper_pearson([0, 3, 10], [10, 10, 10], 0.95)
    assert low[0] == 0
    assert high[2] == 1
    assert stats.binom(10, low[1]).sf(2) == pytest.approx(0.05)
    assert stats.binom(10, high[1]).cdf(3) == pytest.approx(0.05)
    assert high[0] == pytest.approx(1 - 0.05 ** (1 / 10))


def test_an_audit_without_runs_is_refused():
    with pytest.raises(BadPrivacy, match="at least two runs"):
        epsilon_lower_bound([1.0], [0.0, 1.0], DELTA)
    assert epsilon_lower_bound([1.0] * 4, [1.0] * 4, DELTA).epsilon == 0.0
