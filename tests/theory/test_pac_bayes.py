"""Bounds in closed form, and against simulated patients."""

import math

import numpy as np
import pytest
import scipy.stats

from medvfm_jax.theory import (
    NoBound,
    gaussian_divergence,
    kl_bernoulli,
    kl_inverse,
    pac_bayes_bound,
    sampled_error,
)


def test_the_divergence_of_coins():
    assert kl_bernoulli(0.3, 0.3) == 0
    assert kl_bernoulli(0.2, 0.5) == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(1.6))
    assert kl_bernoulli(0.2, 0.0) == math.inf
    assert kl_bernoulli(0.0, 0.4) == pytest.approx(-math.log(0.6))


@pytest.mark.parametrize("budget", [0.0, 0.01, 0.3, 4.0])
def test_the_inverse_without_errors_is_one_minus_exp(budget):
    assert kl_inverse(0.0, budget) == pytest.approx(1 - math.exp(-budget), abs=1e-12)


def test_the_inverse_undoes_the_divergence():
    for q in (0.05, 0.4, 0.9):
        p = kl_inverse(q, 0.07)
        assert p > q
        assert kl_bernoulli(q, p) == pytest.approx(0.07, rel=1e-9)
    assert kl_inverse(1.0, 0.5) == 1
    for q, budget in ((1.2, 0.1), (-0.1, 0.1), (0.5, -1.0), (math.nan, 1.0), (0.5, math.nan)):
        with pytest.raises(NoBound):
            kl_inverse(q, budget)


def test_the_divergence_of_gaussians_is_the_sum_of_those_of_their_numbers():
    theta, start, s, s_0 = np.array([0.3, -1.0, 2.0]), np.array([0.0, -0.5, 1.0]), 0.4, 0.7
    x = np.linspace(-12, 12, 200_001)
    total = 0.0
    for a, b in zip(theta, start):
        q, p = scipy.stats.norm(a, s), scipy.stats.norm(b, s_0)
        total += np.trapezoid(q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), x)
    found = gaussian_divergence(3, float(((theta - start) ** 2).sum()), s, s_0)
    assert found == pytest.approx(total, rel=1e-6)
    assert gaussian_divergence(5, 2.0, 0.5, 0.5) == pytest.approx(2.0 / (2 * 0.25))


def test_the_bound_is_maurers():
    n, nats, doubt = 100, 7.0, 0.05
    budget = (nats + math.log(2 * math.sqrt(n) / doubt)) / n
    assert pac_bayes_bound(0.1, nats, n, doubt) == kl_inverse(0.1, budget)
    assert sampled_error(0.1, 20, 0.01) == kl_inverse(0.1, math.log(2 / 0.01) / 20)
    assert pac_bayes_bound(0.1, 1e9, n, doubt) == pytest.approx(1)


def test_the_bound_holds_as_often_as_it_says():
    """A predictor chosen before the data: 2000 samples of 30 patients with an expected error of 0.2."""
    rng = np.random.default_rng(0)
    errors = rng.beta(2, 8, (2000, 30)).mean(1)
    holds = np.mean([pac_bayes_bound(e, 0.0, 30, 0.2) >= 0.2 for e in errors])
    assert holds >= 0.8
