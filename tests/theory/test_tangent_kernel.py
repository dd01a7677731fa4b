"""The tangent kernel of linear models, where what it predicts is what happens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.theory import NoKernel, linearised_losses, summarise_kernel


def problem(seed=0, n=12, p=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)), rng.integers(0, 2, n).astype(float), rng.normal(size=p)


def test_a_linear_model_trains_as_its_kernel_says():
    x, y, w = problem()
    predicted = linearised_losses(x @ x.T, x @ w, y, rate=0.7, steps=25)
    losses = []
    for _ in range(26):
        f = x @ w
        p = 1 / (1 + np.exp(-f))
        losses.append(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
        w = w - 0.7 * x.T @ (p - y) / len(y)
    np.testing.assert_allclose(predicted, losses, rtol=1e-12)


def test_the_slope_is_the_first_decrease_of_the_loss():
    x, y, w = problem(1)
    f = x @ w
    found = summarise_kernel(x @ x.T, f, y)
    losses = linearised_losses(x @ x.T, f, y, rate=1e-6, steps=1)
    assert found.slope == pytest.approx((losses[0] - losses[1]) / 1e-6, rel=1e-4)


def test_lora_at_its_start_has_the_kernel_of_the_projected_inputs():
    """f = v' (W + B A) x with B = 0: the gradient with respect to B is v (A x)', that with respect to A is 0."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        x, v = rng.normal(size=(7, 6)), rng.normal(size=4)
        w, a = rng.normal(size=(4, 6)), rng.normal(size=(3, 6))

        def outputs(delta):
            return (jnp.asarray(x) @ (w + delta["b"] @ delta["a"]).T) @ v

        start = {"a": jnp.asarray(a), "b": jnp.zeros((4, 3))}
        jacobian = jax.jacobian(outputs)(start)
        rows = np.concatenate([np.asarray(jacobian[name]).reshape(7, -1) for name in "ab"], axis=1)
        projected = x @ a.T
        np.testing.assert_allclose(rows @ rows.T, (v @ v) * projected @ projected.T, atol=1e-12)


def test_spectrum_dimension_and_alignment_of_a_diagonal_kernel():
    found = summarise_kernel(np.diag([4.0, 1.0, 0.0]), np.zeros(3), [1.5, 1.5, 1.5], ridge=0.25, times=(1,))
    np.testing.assert_allclose(found.eigenvalues, [4, 1, 0])
    assert found.trace == pytest.approx(5 / 3)
    assert found.ridge == pytest.approx(1)
    assert found.dimension == pytest.approx(4 / 5 + 1 / 2)
    assert found.alignment == pytest.approx(5 / (17**0.5 * 3))
    assert found.slope == pytest.approx(5 / 9)
    assert found.left[0] == pytest.approx((np.exp(-2) + np.exp(-0.5) + 1) / 3)


def test_losses_are_those_of_half_the_stable_rate():
    x, y, w = problem(3)
    kernel = x @ x.T
    found = summarise_kernel(kernel, x @ w, y, times=(2, 5))
    rate = 4 * len(y) / np.linalg.eigvalsh(kernel)[-1]
    np.testing.assert_allclose(
        found.losses, linearised_losses(kernel, x @ w, y, rate=rate, steps=5)[[0, 2, 5]]
    )
    assert found.losses[0] > found.losses[1] > found.losses[2]


def test_alignment_is_one_for_the_kernel_of_the_residual_itself():
    r = np.array([0.3, -0.2, 0.5])
    assert summarise_kernel(np.outer(r, r), np.zeros(3), 0.5 + r).alignment == pytest.approx(1)


@pytest.mark.parametrize(
    ("kernel", "labels", "said"),
    [
        (np.zeros((2, 2)), [1.0, 0.0], "No output depends"),
        (np.eye(2), [0.5, 0.5], "right about every output"),
        (np.full((2, 2), np.nan), [1.0, 0.0], "not finite"),
    ],
)
def test_a_kernel_of_which_nothing_can_be_said(kernel, labels, said):
    with pytest.raises(NoKernel, match=said):
        summarise_kernel(kernel, np.zeros(2), labels)
