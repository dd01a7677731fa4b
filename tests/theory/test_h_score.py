"""The H-score against its definition, its value for Gaussians, and what shrinking does."""

import numpy as np
import pytest

from medvfm_jax.theory.h_score import h_score, shrinkage

RNG = np.random.default_rng(0)


def exact_gaussian(n, d):
    """n examples whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = RNG.standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / n)).T


def test_two_gaussians():
    """Means m and -m, covariance 1 within: C = 1 + m m', B = m m', so tr(C^-1 B) = |m|^2 / (1 + |m|^2)."""
    m = np.array([0.5, -1, 2])
    x = np.concatenate([exact_gaussian(40, 3) + m, exact_gaussian(40, 3) - m])
    found = h_score(x, np.repeat([0, 1], 40))
    assert found == pytest.approx(m @ m / (1 + m @ m), rel=1e-12)


def test_the_definition_and_linear_maps():
    classes = RNG.integers(0, 3, 90)
    x = np.eye(5)[classes] + RNG.standard_normal((90, 5)) * [1, 2, 3, 4, 5]
    means = np.stack([x[classes == k].mean(0) for k in range(3)])[classes]
    expected = np.trace(np.linalg.inv(np.cov(x.T)) @ np.cov(means.T))
    assert h_score(x, classes) == pytest.approx(expected, rel=1e-10)
    mixed = x @ RNG.standard_normal((5, 5)) + 7
    assert h_score(mixed, classes) == pytest.approx(expected, rel=1e-8)
    singular = np.concatenate([x, x[:, :2] - x[:, 2:4], np.ones((90, 1))], 1)
    assert h_score(singular, classes) == pytest.approx(expected, rel=1e-8), "a pseudo-inverse is exact"


def test_classes_without_spread_have_the_most():
    classes = np.repeat(np.arange(4), 5)
    assert h_score(np.eye(6)[classes], classes) == pytest.approx(3)


def test_shrinking_takes_away_what_many_features_have_by_chance():
    x, classes = RNG.standard_normal((60, 50)), np.repeat([0, 1], 30)
    assert h_score(x, classes) > 0.6
    assert h_score(x, classes, shrink=True) < 0.1
    m = np.array([2, 0])
    far = np.concatenate([exact_gaussian(4000, 2) + m, exact_gaussian(4000, 2) - m])
    many = np.repeat([0, 1], 4000)
    assert h_score(far, many, shrink=True) == pytest.approx(h_score(far, many), abs=0.01)


def test_shrunk_by_its_definition():
    x, classes = RNG.standard_normal((30, 6)) * np.arange(1, 7), np.repeat([0, 1, 2], 10)
    x = x - x.mean(0)
    share = shrinkage(x)
    covariance = (1 - share) * x.T @ x / 30 + share * np.trace(x.T @ x / 30) / 6 * np.eye(6)
    means = np.stack([x[classes == k].mean(0) for k in range(3)])[classes]
    expected = np.trace(np.linalg.inv(covariance) @ ((1 - share) * means.T @ means / 30))
    assert h_score(x, classes, shrink=True) == pytest.approx(expected, rel=1e-10)


def test_shrinkage_by_its_definition():
    """Squared errors of the products of single examples over n, against the distance from the identity."""
    x = RNG.standard_normal((25, 4)) * [1, 1, 2, 3]
    x -= x.mean(0)
    covariance = x.T @ x / 25
    error = np.mean([np.sum((np.outer(row, row) - covariance) ** 2) for row in x]) / 25
    distance = np.sum((covariance - np.trace(covariance) / 4 * np.eye(4)) ** 2)
    assert 0 < error < distance
    assert shrinkage(x) == pytest.approx(error / distance, rel=1e-12)
    assert shrinkage(x[:, :1]) == 1


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match="one class"):
        h_score(RNG.standard_normal((5, 2)), np.zeros(5))
    with pytest.raises(ValueError, match="the same for all"):
        h_score(np.full((6, 2), 0.1), np.arange(6) % 2)
    with pytest.raises(ValueError, match="not finite"):
        h_score(np.full((6, 2), np.nan), np.arange(6) % 2)
