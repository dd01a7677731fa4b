"""Products with second derivatives, and what they say of spectra that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.theory import NoCurvature, estimate_spectrum, gauss_newton_product, hessian_product, lanczos


def symmetric(values, seed=0):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return turn @ np.diag(values) @ turn.T


def test_the_product_is_that_of_the_second_derivatives():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w, v = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))

        def loss(x):
            return jnp.sum(jnp.sin(x) * jnp.roll(x, 1) ** 2)

        np.testing.assert_allclose(hessian_product(loss, w, v), jax.hessian(loss)(w) @ v, atol=1e-12)


@pytest.mark.slow
def test_gauss_newton_leaves_out_the_curvature_of_the_model():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, v = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
        weights = jnp.asarray(rng.normal(size=(6, 4)))

        def predict(at):
            return {"a": jnp.tanh(weights @ at), "b": jnp.sum(at**3)}

        def loss(outputs):
            return jnp.sum(jnp.logaddexp(0, outputs["a"])) + 0.5 * outputs["b"] ** 2

        jacobian = jnp.concatenate([jax.jacobian(predict)(x)["a"], jax.jacobian(predict)(x)["b"][None]])
        outputs = predict(x)
        p = jax.nn.sigmoid(outputs["a"])
        inner = jnp.diag(jnp.concatenate([p * (1 - p), jnp.ones(1)]))
        expected = jacobian.T @ inner @ jacobian @ v
        np.testing.assert_allclose(gauss_newton_product(predict, loss, x, v), expected, atol=1e-12)
        # of a linear model it is the Hessian
        linear = gauss_newton_product(lambda at: weights @ at, lambda z: jnp.sum(z**4), x, v)
        np.testing.assert_allclose(
            linear, hessian_product(lambda at: jnp.sum((weights @ at) ** 4), x, v), atol=1e-10
        )


def test_lanczos_finds_the_eigenvalues_and_the_mass_at_each():
    values = np.array([-2.0, 0.5, 1.0, 3.0, 10.0])
    matrix = symmetric(values)
    start = np.random.default_rng(2).normal(size=5)
    found, mass = lanczos(lambda v: matrix @ v, start, 20)
    np.testing.assert_allclose(found, values, atol=1e-12)
    _, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(mass, (vectors.T @ start) ** 2 / (start @ start), atol=1e-12)


def test_few_iterations_are_exact_for_polynomials():
    matrix = symmetric(np.linspace(-1, 4, 30))
    start = np.random.default_rng(3).normal(size=30)
    found, mass = lanczos(lambda v: matrix @ v, start, 3)
    assert len(found) == 3
    for power in range(6):  # degree 2 m - 1 = 5
        exact = start @ np.linalg.matrix_power(matrix, power) @ start / (start @ start)
        assert (mass * found**power).sum() == pytest.approx(exact, rel=1e-10)


def test_an_eigenvalue_that_is_there_twice_is_found_once():
    matrix = symmetric([1.0, 1.0, 1.0, 5.0])
    found, mass = lanczos(lambda v: matrix @ v, np.ones(4), 4)
    np.testing.assert_allclose(found, [1, 5], atol=1e-12)
    assert mass.sum() == pytest.approx(1)


def test_the_trace_of_a_diagonal_matrix_has_no_error():
    found = estimate_spectrum(lambda v: np.arange(1.0, 9) * v, 8, probes=3, iterations=8)
    assert found.trace == pytest.approx(36)
    assert found.trace_error == pytest.approx(0, abs=1e-12)
    assert found.largest == pytest.approx((8, 7, 6))
    assert found.smallest == pytest.approx(1)
    assert found.weights.sum() == pytest.approx(1)
    assert found.negative == 0
    assert found.products == 24


def test_the_variance_of_the_trace_is_hutchinsons():
    matrix = symmetric(np.linspace(-3, 5, 20))
    traces = [
        estimate_spectrum(lambda v: matrix @ v, 20, probes=1, iterations=2, seed=s).trace for s in range(3000)
    ]
    variance = 2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum())
    assert np.mean(traces) == pytest.approx(np.trace(matrix), abs=4 * (variance / 3000) ** 0.5)
    assert np.var(traces) == pytest.approx(variance, rel=0.12)
    several = estimate_spectrum(lambda v: matrix @ v, 20, probes=200, iterations=2)
    assert several.trace_error == pytest.approx((variance / 200) ** 0.5, rel=0.25)


def test_negative_mass_is_the_share_of_negative_eigenvalues():
    values = np.array([-1.0] * 3 + [2.0] * 9)
    found = estimate_spectrum(lambda v: values * v, 12, probes=2, iterations=2)
    assert found.negative == pytest.approx(0.25)


@pytest.mark.parametrize(("product", "said"), [(0.0, "is 0"), (np.nan, "not finite")])
def test_no_spectrum_of_nothing(product, said):
    with pytest.raises(NoCurvature, match=said):
        estimate_spectrum(lambda v: v * product, 5)
