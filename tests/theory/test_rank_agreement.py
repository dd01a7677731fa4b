"""Spearman's correlation against its definition and SciPy's, and what few pairs cannot say."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from medvfm_jax.theory import rank_agreement


def test_the_correlation_is_that_of_the_ranks():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=15), rng.integers(0, 5, 15)  # with ties
    found = rank_agreement(x, y)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found.p == pytest.approx(spearmanr(x, y).pvalue, abs=0.03)
    assert found.low < found.rho < found.high
    assert found.n == 15


def test_all_orders_of_few_pairs_are_looked_at():
    found = rank_agreement([1, 2, 3, 4], [10, 20, 30, 40])
    assert found.rho == 1
    assert found.p == pytest.approx(2 / 24)  # the same order, and the opposite one
    x, y = [3, 1, 2, 5, 4], [1.0, 2.0, 4.0, 3.0, 5.0]
    other = [abs(spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    expected = np.mean(np.array(other) >= abs(spearmanr(x, y).statistic) - 1e-12)
    assert rank_agreement(x, y).p == pytest.approx(expected)


def test_the_interval_covers_what_is_true_of_the_population():
    rng = np.random.default_rng(1)
    true = 6 / np.pi * np.arcsin(0.8 / 2)  # of a Gaussian with correlation 0.8
    inside = 0
    for seed in range(200):
        x = rng.normal(size=40)
        y = 0.8 * x + 0.6 * rng.normal(size=40)
        found = rank_agreement(x, y, draws=300, seed=seed)
        inside += found.low <= true <= found.high
    assert 176 <= inside <= 199  # nominally 190


@pytest.mark.parametrize(("x", "y"), [([1, 2], [2, 1]), ([1, 1, 1], [1, 2, 3]), ([], [])])
def test_nothing_is_said_where_there_is_no_order(x, y):
    found = rank_agreement(x, y)
    assert np.isnan([found.rho, found.low, found.high, found.p]).all()
    assert found.n == len(x)


@pytest.mark.parametrize(("x", "y", "said"), [([1, 2], [1], "shape"), ([1, 2, np.nan], [1, 2, 3], "finite")])
def test_pairs_that_are_none_are_refused(x, y, said):
    with pytest.raises(ValueError, match=said):
        rank_agreement(x, y)
