"""Drift on quadratic losses, where local steps have a closed form."""

import numpy as np
import pytest

from medvfm_jax.theory.client_drift import NoDrift, client_drift


def quadratics(seed=0, clients=4, p=5):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(clients, p, p))
    a = np.einsum("nij,nkj->nik", roots, roots) / p + 0.1 * np.eye(p)
    return a, rng.normal(size=(clients, p)), rng.normal(size=p)


def moved(a, b, x, rate, steps):
    """K gradient steps on (y - b)' a (y - b) / 2, in closed form."""
    return b + np.linalg.matrix_power(np.eye(len(x)) - rate * a, steps) @ (x - b) - x


def drifts(rate, steps, seed=0):
    """(Predicted, real) difference between the mean of local moves and the move of the mean loss."""
    a, b, x = quadratics(seed)
    g = np.einsum("nij,nj->ni", a, x - b)
    whole = a.mean(0)
    centre = np.linalg.solve(whole, np.einsum("nij,nj->i", a, b) / len(a))
    found = client_drift(g, np.einsum("nij,nj->ni", a, g), whole @ g.mean(0))
    real = np.mean([moved(a[i], b[i], x, rate, steps) for i in range(len(a))], 0)
    real = real - moved(whole, centre, x, rate, steps)
    predicted = rate**2 * steps * (steps - 1) / 2 * found.direction
    assert found.relative(rate, steps) == pytest.approx(
        np.linalg.norm(predicted) / (rate * steps * np.linalg.norm(g.mean(0)))
    )
    return predicted, real


def test_the_prediction_is_exact_but_for_the_third_order():
    errors = []
    for rate in (2e-3, 1e-3, 5e-4):
        predicted, real = drifts(rate, 10)
        errors.append(np.linalg.norm(predicted - real))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.05)
    predicted, real = drifts(5e-4, 10)
    assert np.linalg.norm(predicted - real) < 0.01 * np.linalg.norm(real)


def test_one_step_does_not_drift():
    predicted, real = drifts(0.1, 1)
    np.testing.assert_allclose(predicted, 0)
    np.testing.assert_allclose(real, 0, atol=1e-12)


def test_at_the_optimum_it_gives_the_bias_of_the_fixed_point():
    """x - x* = r (K - 1) / 2 A^-1 mean(A_i g_i), from the drift of clients whose mean gradient is nearly 0."""
    a, b, _ = quadratics(3)
    whole = a.mean(0)
    best = np.linalg.solve(whole, np.einsum("nij,nj->i", a, b) / len(a))
    rate, steps = 1e-3, 10
    s = np.array([np.eye(5) - np.linalg.matrix_power(np.eye(5) - rate * one, steps) for one in a])
    fixed = np.linalg.solve(s.sum(0), np.einsum("nij,nj->i", s, b))
    g = np.einsum("nij,nj->ni", a, best - b)
    found = client_drift(g + 1e-9, np.einsum("nij,nj->ni", a, g), whole @ g.mean(0))
    bias = rate * (steps - 1) / 2 * np.linalg.solve(whole, found.direction)
    np.testing.assert_allclose(bias, fixed - best, rtol=0.05, atol=2e-5)


def test_clients_that_are_alike_do_not_drift():
    a, b, x = quadratics(1, clients=1)
    g = (a[0] @ (x - b[0]))[None].repeat(3, 0)
    found = client_drift(g, g @ a[0], a[0] @ g[0])
    assert found.ratio == pytest.approx(0, abs=1e-12)
    assert found.most_steps(0.1, 0.05) > 10**6


def test_most_steps_are_the_last_within_the_tolerance():
    a, b, x = quadratics(2)
    g = np.einsum("nij,nj->ni", a, x - b)
    found = client_drift(g, np.einsum("nij,nj->ni", a, g), a.mean(0) @ g.mean(0))
    steps = found.most_steps(0.01, 0.1)
    assert found.relative(0.01, steps) <= 0.1 < found.relative(0.01, steps + 1)


def test_weights_count():
    a, b, x = quadratics(4, clients=2)
    g = np.einsum("nij,nj->ni", a, x - b)
    hg = np.einsum("nij,nj->ni", a, g)
    found = client_drift(g, hg, a[0] @ g[0], weights=(1, 0))
    assert found.ratio == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("gradients", "said"),
    [(np.ones((1, 3)), "two clients"), (np.zeros((2, 3)), "at rest"), (np.full((2, 3), np.nan), "finite")],
)
def test_no_drift_of_nothing(gradients, said):
    with pytest.raises(NoDrift, match=said):
        client_drift(gradients, gradients, gradients[0])
