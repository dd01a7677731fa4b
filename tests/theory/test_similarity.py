"""Centred kernel alignment: what leaves it alone, and what independent features have."""

import numpy as np
import pytest

from medvfm_jax.theory.similarity import _unbiased_hsic, debiased_cka

RNG = np.random.default_rng(0)


def test_rotation_scale_and_shift_change_nothing():
    x = RNG.standard_normal((30, 6))
    turned, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    assert debiased_cka(x, 3 * x @ turned + 5) == pytest.approx(1)
    y = RNG.standard_normal((30, 4))
    assert debiased_cka(x, y) == pytest.approx(debiased_cka(y, x @ turned))


def test_independent_features_are_not_alike_however_many_they_are():
    pairs = [(RNG.standard_normal((40, 400)), RNG.standard_normal((40, 400))) for _ in range(40)]
    clean = [debiased_cka(*pair) for pair in pairs]
    assert abs(np.mean(clean)) < 4 * np.std(clean) / len(clean) ** 0.5


def test_a_number_by_hand():
    """Centred (-3, -1, 1, 3) and (-1, -3, 3, 1): sums of products over pairs, of rows and in all, of the 4 examples.

    Off the diagonal the products are (3, -3, -9, -1, -3, 3) and (3, -3, -1, -9, -3, 3), rows sum to -x^2.
    """
    x, y = np.array([[-3.0], [-1], [1], [3]]), np.array([[-1.0], [-3], [3], [1]])
    pairs = 2 * (9 + 9 + 9 + 9 + 9 + 9)
    both = pairs + 20 * 20 / 6 - 2 * (9 + 9 + 9 + 9) / 2
    itself = 2 * (9 + 9 + 81 + 1 + 9 + 9) + 20 * 20 / 6 - 2 * (81 + 1 + 1 + 81) / 2
    assert debiased_cka(x, y) == pytest.approx(both / itself)


def test_the_estimate_has_no_bias():
    """Mean over small samples of features with variances 1, 2, 3: the sum of their squares, as of many examples."""
    found = []
    for _ in range(3000):
        x = RNG.standard_normal((6, 3)) * np.sqrt([1.0, 2.0, 3.0])
        found.append(_unbiased_hsic(x @ x.T, x @ x.T))
    assert abs(np.mean(found) - 14) < 4 * np.std(found) / len(found) ** 0.5


def test_constant_features_and_too_few_examples():
    x, constant = RNG.standard_normal((5, 2)), np.ones((5, 3))
    assert np.isnan(debiased_cka(constant, x))
    with pytest.raises(ValueError, match="3 examples"):
        debiased_cka(x[:3], x[:3])
