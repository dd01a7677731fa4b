"""Distances of domains against their closed forms for Gaussians, and 0 for one and the same."""

import numpy as np
import pytest

from medvfm_jax.theory.frechet import squared_frechet
from medvfm_jax.theory.maximum_mean_discrepancy import gaussian_kernel, squared_mmd
from medvfm_jax.theory.permutation import permutation_test
from medvfm_jax.theory.proxy_distance import proxy_a_distance
from medvfm_jax.theory.sliced_wasserstein import directions, squared_sliced_wasserstein

RNG = np.random.default_rng(0)
HALF = np.arange(60) < 30


@pytest.mark.parametrize(("shift", "deviation", "width"), [(1.0, 1.0, 2.0), (0.5, 2.0, 1.5), (0.0, 1.0, 1.0)])
def test_mmd_of_gaussians(shift, deviation, width):
    """2 (l^2 / (l^2 + 2 s^2))^(d / 2) (1 - exp(-|m|^2 / (2 (l^2 + 2 s^2)))) for N(0, s^2) and N(m, s^2) in d = 3."""
    between = width**2 + 2 * deviation**2
    expected = 2 * (width**2 / between) ** 1.5 * (1 - np.exp(-3 * shift**2 / (2 * between)))
    found = []
    for _ in range(300):
        x = RNG.standard_normal((60, 3)) * deviation
        found.append(squared_mmd(gaussian_kernel(x + shift * HALF[:, None], width), HALF))
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / len(found) ** 0.5


def test_mmd_by_its_definition_and_the_median_distance():
    x = RNG.standard_normal((7, 2))
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(7) for j in range(i)]
    kernel = gaussian_kernel(x)
    assert kernel[2, 5] == pytest.approx(
        np.exp(-(np.linalg.norm(x[2] - x[5]) ** 2) / (2 * np.median(distances) ** 2))
    )
    first = np.arange(7) < 3
    a = np.mean([kernel[i, j] for i in range(3) for j in range(3) if i != j])
    b = np.mean([kernel[i, j] for i in range(3, 7) for j in range(3, 7) if i != j])
    assert squared_mmd(kernel, first) == pytest.approx(a + b - 2 * kernel[:3, 3:].mean())
    assert gaussian_kernel(x + 1e6, 1.0) == pytest.approx(gaussian_kernel(x, 1.0), abs=1e-5)
    with pytest.raises(ValueError, match="the same features"):
        gaussian_kernel(np.ones((4, 2)))


def test_frechet_of_exact_moments():
    """Diagonal covariances: |m|^2 + sum (s - s')^2."""
    x = RNG.standard_normal((50, 4))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    s, t, m = np.array([1.0, 2, 3, 0]), np.array([2.0, 1, 1, 5]), np.array([1.0, 0, -2, 0.5])
    turned, _ = np.linalg.qr(RNG.standard_normal((4, 4)))
    found = squared_frechet(x * s @ turned, (x[::-1] * t + m) @ turned)
    assert found == pytest.approx(m @ m + np.sum((s - t) ** 2), rel=1e-10)
    assert squared_frechet(x, x) == pytest.approx(0, abs=1e-10)
    few, many = x[:3], RNG.standard_normal((9, 4))
    expected = np.trace(np.cov(few.T) + np.cov(many.T)) + np.sum((few.mean(0) - many.mean(0)) ** 2)
    roots = np.linalg.eigvals(np.cov(few.T) @ np.cov(many.T)).real
    assert squared_frechet(few, many) == pytest.approx(
        expected - 2 * np.sqrt(np.maximum(roots, 0)).sum(), rel=1e-6
    )


def test_sliced_wasserstein_of_a_shift_and_a_scale():
    """|m|^2 / d of a shift; of examples that are scaled (s - 1)^2 times their mean square."""
    along = directions(5, 4000, RNG)
    assert np.linalg.norm(along, axis=0) == pytest.approx(np.ones(4000))
    x, m = RNG.standard_normal((40, 5)), np.array([1.0, -2, 0, 3, 0])
    parts = (along.T @ m) ** 2
    found = squared_sliced_wasserstein(x @ along, (x + m) @ along)
    assert found == pytest.approx(parts.mean(), rel=1e-10)
    assert abs(found - m @ m / 5) < 4 * parts.std() / 4000**0.5
    seen = x @ along
    assert squared_sliced_wasserstein(seen, 3 * seen) == pytest.approx(4 * np.mean(seen**2), rel=1e-10)
    assert squared_sliced_wasserstein(seen, seen[::-1]) == 0


def test_sliced_wasserstein_of_samples_of_unequal_size():
    """Every example as often as makes them equally many is the same distribution."""
    x, y = RNG.standard_normal((6, 3)), RNG.standard_normal((4, 3)) + 1
    expected = np.mean((np.sort(np.repeat(x, 2, 0), 0) - np.sort(np.repeat(y, 3, 0), 0)) ** 2)
    assert squared_sliced_wasserstein(x, y) == pytest.approx(expected)


def test_a_distance_of_separable_and_of_equal_domains():
    x = RNG.standard_normal((60, 200))
    far = x.copy()
    far[:, 0] += 100 * HALF
    assert proxy_a_distance(far, HALF) == 2
    assert proxy_a_distance(np.ones((60, 3)), HALF) == 0
    found = [proxy_a_distance(RNG.standard_normal((60, 200)), RNG.permutation(HALF)) for _ in range(100)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 10
    few = np.arange(60) < 3
    found = [proxy_a_distance(RNG.standard_normal((60, 20)), few) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 200**0.5, "unequal domains count half each"


@pytest.mark.slow
def test_a_distance_of_two_gaussians_on_a_line():
    """The best line between N(-m, 1) and N(m, 1) is wrong with probability Phi(-m)."""
    first = np.arange(4000) < 2000
    x = RNG.standard_normal((4000, 1)) + np.where(first, 0.5, -0.5)[:, None]
    error = 0.3085375
    assert proxy_a_distance(x, first) == pytest.approx(2 * (1 - 2 * error), abs=4 * 4 * 0.0073)


def test_p_values_are_even_without_a_difference_and_least_with_one():
    values = RNG.standard_normal(60)

    def gap(first):
        return abs(values[first].mean() - values[~first].mean())

    found = [permutation_test(gap, RNG.permutation(HALF), 99, RNG).p_value for _ in range(200)]
    assert abs(np.mean(found) - 0.505) < 4 * 0.29 / 200**0.5
    values = values + 9 * HALF
    tested = permutation_test(gap, HALF, 99, RNG)
    assert tested.p_value == 0.01
    assert tested.by_chance < tested.value
    assert permutation_test(lambda first: 1.0, HALF, 9, RNG) == (1, 1, 1)
