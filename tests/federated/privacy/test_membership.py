import numpy as np
import pytest
from scipy import integrate, stats

from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.membership import (
    largest_advantage,
    largest_auc,
    loss_attack,
    per_patient,
    true_positive_rate,
)


@pytest.mark.parametrize("gap", [0.0, 0.7, 2.0])
def test_normal_losses_have_a_known_auc_and_advantage(gap):
    """Losses N(0, 1) and N(gap, 1): AUC Φ(gap / √2), advantage 2 Φ(gap / 2) - 1."""
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=4000), rng.normal(gap, size=3000)
    found = loss_attack(members, others)
    assert abs(found.auc - stats.norm.cdf(gap / np.sqrt(2))) < 4 * found.auc_error
    assert found.advantage == pytest.approx(2 * stats.norm.cdf(gap / 2) - 1, abs=0.05)
    if gap:
        assert found.threshold == pytest.approx(gap / 2, abs=0.3)
    rate = stats.norm.cdf(stats.norm.ppf(0.05) + gap)
    assert true_positive_rate(members, others, 0.05) == pytest.approx(rate, abs=0.04)


def test_the_standard_error_is_that_of_repetitions():
    rng = np.random.default_rng(1)
    found = [loss_attack(rng.normal(size=40), rng.normal(0.8, 2.0, size=25)) for _ in range(600)]
    spread = np.std([f.auc for f in found])
    assert np.mean([f.auc_error for f in found]) == pytest.approx(spread, rel=0.1)


def test_ties_count_half_and_order_is_all_that_matters():
    members, others = np.array([0, 1, 1, 2, 5]), np.array([1, 2, 2, 7])
    pairs = [(a < b) + 0.5 * (a == b) for a in members for b in others]
    found = loss_attack(members, others)
    assert found.auc == pytest.approx(np.mean(pairs))
    assert found.advantage == pytest.approx(
        max(np.mean(members <= t) - np.mean(others <= t) for t in range(8))
    )
    assert loss_attack(np.exp(members), np.exp(others))[:3] == pytest.approx(found[:3])
    assert loss_attack(others, members).auc == pytest.approx(1 - found.auc)
    assert loss_attack([1.0], [1.0]).auc == 0.5
    assert true_positive_rate(members, others, 0.0) == pytest.approx(1 / 5)
    assert true_positive_rate([3.0], [1.0], 0.0) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.1), (8.0, 1e-5), (1000.0, 0.0)]
)
def test_what_a_guarantee_allows(epsilon, delta):
    def curve(f):
        return min(np.exp(min(epsilon, 700)) * f + delta, 1 - np.exp(-epsilon) * (1 - delta - f), 1.0)

    grid = np.linspace(0, 1, 200001)
    best = np.array([curve(f) for f in grid[::100]]) - grid[::100]
    assert largest_advantage(epsilon, delta) == pytest.approx(best.max(), abs=2e-3)
    corner = (1 - delta) / (1 + np.exp(min(epsilon, 700)))
    area = integrate.quad(curve, 0, 1, points=[corner, 1 - delta], limit=200)[0]
    assert largest_auc(epsilon, delta) == pytest.approx(area, abs=1e-6)
    if delta == 0 and epsilon < 700:
        assert largest_auc(epsilon, 0.0) == pytest.approx(np.exp(epsilon) / (1 + np.exp(epsilon)))


def test_one_loss_per_patient():
    np.testing.assert_allclose(per_patient([1.0, 5.0, 3.0, 7.0], ["b", "a", "b", "c"]), [2.0, 5.0, 7.0])
    with pytest.raises(BadPrivacy, match="2 losses and 1 patients"):
        per_patient([1.0, 2.0], ["a"])
    with pytest.raises(BadPrivacy, match="none that is NaN"):
        loss_attack([np.nan], [1.0])
    with pytest.raises(BadPrivacy, match="no privacy guarantee"):
        largest_auc(-1.0, 0.0)
