"""Centred kernel alignment: what leaves it alone, and what independent features have."""

import numpy as np
import pytest

from medvfm_jax.theory.similarity import _unbiased_hsic, debiased_cka, linear_cka

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("alignment", [linear_cka, debiased_cka])
def test_rotation_scale_and_shift_change_nothing(alignment):
    x = RNG.standard_normal((30, 6))
    turned, _ = np.linalg.qr(RNG.standard_normal((6, 6)))
    assert alignment(x, 3 * x @ turned + 5) == pytest.approx(1)
    y = RNG.standard_normal((30, 4))
    assert alignment(x, y) == pytest.approx(alignment(y, x @ turned))


def test_independent_features_are_alike_by_their_number_alone_and_not_without_bias():
    """Of n examples with p and q features of unit variance linear CKA is about sqrt(p q) / n for p, q > n."""
    pairs = [(RNG.standard_normal((40, 400)), RNG.standard_normal((40, 400))) for _ in range(40)]
    assert np.mean([linear_cka(*pair) for pair in pairs]) > 0.8
    clean = [debiased_cka(*pair) for pair in pairs]
    assert abs(np.mean(clean)) < 4 * np.std(clean) / len(clean) ** 0.5


def test_a_number_by_hand():
    """Centred: x = (-1, 0, 1), y = (-1, 1, 0): (x'y)^2 / (x'x y'y) = 1 / 4."""
    assert linear_cka([[0.0], [1], [2]], [[1.0], [3], [2]]) == pytest.approx(0.25)


def test_the_estimate_has_no_bias():
    """Mean over small samples of features with variances 1, 2, 3: the sum of their squares, as of many examples."""
    found = []
    for _ in range(3000):
        x = RNG.standard_normal((6, 3)) * np.sqrt([1.0, 2.0, 3.0])
        found.append(_unbiased_hsic(x @ x.T, x @ x.T))
    assert abs(np.mean(found) - 14) < 4 * np.std(found) / len(found) ** 0.5


def test_constant_features_and_too_few_examples():
    x, constant = RNG.standard_normal((5, 2)), np.ones((5, 3))
    assert np.isnan(linear_cka(x, constant))
    assert np.isnan(debiased_cka(constant, x))
    with pytest.raises(ValueError, match="3 examples"):
        debiased_cka(x[:3], x[:3])
