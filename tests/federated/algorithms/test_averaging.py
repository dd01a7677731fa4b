"""FedAvg, FedProx, FedSharp: fixed points and first-order bias on quadratics, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg, fedprox, fedsharp
from medvfm_jax.federated.algorithms.averaging import sharpness_aware
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import KEY, cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = cohort()
IDENTITY = np.eye(5)


def averaged_point(eta: float, steps: int) -> np.ndarray:
    """Solve (sum S_i) x = sum S_i b_i with S_i = I - (I - eta A_i)^K."""
    s = np.stack([IDENTITY - np.linalg.matrix_power(IDENTITY - eta * a, steps) for a in PROBLEM.curvature])
    return np.linalg.solve(s.sum(0), np.einsum("nij,nj->i", s, PROBLEM.centre))


def test_fedavg_converges_to_its_own_fixed_point_not_to_the_optimum() -> None:
    server, _, _ = run(fedavg(gradient_of(loss), optax.sgd(0.1)), shard(PROBLEM, 10), 60)
    want = averaged_point(0.1, 10)
    np.testing.assert_allclose(server.delta["w"], want, atol=1e-14)
    assert np.linalg.norm(want - PROBLEM.optimum) > 0.05


def test_fedavg_bias_is_first_order_in_the_step() -> None:
    """x - x* = eta (K-1)/2 mean(A)^-1 mean(A_i grad f_i(x*)) + O(eta^2): halving eta quarters the rest."""
    steps, best = 3, PROBLEM.optimum
    push = np.einsum("nij,nj->i", PROBLEM.curvature, PROBLEM.gradients(best)) / 4
    slope = (steps - 1) / 2 * np.linalg.solve(PROBLEM.curvature.mean(0), push)
    rest = []
    for eta in (8e-3, 4e-3):
        near = {"w": jnp.asarray(best + eta * slope)}
        server, _, _ = run(fedavg(gradient_of(loss), optax.sgd(eta)), shard(PROBLEM, steps), 600, delta=near)
        rest.append(np.linalg.norm(np.asarray(server.delta["w"]) - best - eta * slope))
    assert rest[0] / rest[1] == pytest.approx(4, rel=0.05)


def test_one_step_of_everybody_is_gradient_descent_on_the_weighted_loss() -> None:
    samples = [1.0, 2.0, 3.0, 4.0]
    server, _, _ = run(fedavg(gradient_of(loss), optax.sgd(0.1)), shard(PROBLEM, 1, samples), 1)
    want = -0.1 * np.average(PROBLEM.gradients(np.zeros(5)), axis=0, weights=samples)
    np.testing.assert_allclose(server.delta["w"], want, rtol=1e-14)


def test_server_rate_scales_the_mean_change() -> None:
    data = shard(PROBLEM, 3)
    full, half = (
        run(fedavg(gradient_of(loss), optax.sgd(0.1), r), data, 1)[0].delta["w"] for r in (1.0, 0.5)
    )
    np.testing.assert_allclose(half, full / 2, rtol=1e-14)


def test_fedprox_solved_exactly_has_the_known_fixed_point() -> None:
    """sum_i P_i (x - b_i) = 0 with P_i = I - mu (A_i + mu I)^-1; the bias falls with mu."""
    bias = []
    for mu in (0.1, 1.0, 10.0):
        algorithm = fedprox(gradient_of(loss), optax.sgd(1 / (3 + mu)), mu)
        server, _, _ = run(algorithm, shard(PROBLEM, 400), 300 if mu > 1 else 60)
        p = np.stack([IDENTITY - mu * np.linalg.inv(a + mu * IDENTITY) for a in PROBLEM.curvature])
        want = np.linalg.solve(p.sum(0), np.einsum("nij,nj->i", p, PROBLEM.centre))
        np.testing.assert_allclose(server.delta["w"], want, atol=1e-13)
        bias.append(np.linalg.norm(want - PROBLEM.optimum))
    assert bias[0] > bias[1] > bias[2]


def test_a_stiff_proximal_term_holds_the_clients_at_the_server() -> None:
    server, _, _ = run(fedprox(gradient_of(loss), optax.sgd(1e-7), 1e6), shard(PROBLEM, 200), 1)
    assert np.abs(server.delta["w"]).max() < 1e-5


def test_sharpness_aware_gradient_of_a_bowl() -> None:
    """On 1/2 |y|^2 the gradient is y (1 + rho / |y|), and nothing at the minimum."""

    def bowl(delta: dict, batch: tuple, key: jax.Array) -> jax.Array:
        del batch, key
        return 0.5 * (delta["w"] ** 2).sum()

    y = jnp.asarray([3.0, -4.0])
    value, grads = sharpness_aware(gradient_of(bowl), 0.05)({"w": y}, (), KEY)
    assert value == 12.5
    np.testing.assert_allclose(grads["w"], y * (1 + 0.05 / 5), rtol=1e-15)
    assert not jnp.any(sharpness_aware(gradient_of(bowl), 0.05)({"w": 0 * y}, (), KEY)[1]["w"])


def test_fedsharp_without_a_radius_is_fedavg() -> None:
    data = shard(PROBLEM, 3)
    sharp, plain = (
        run(a, data, 2)[0]
        for a in (fedsharp(gradient_of(loss), optax.sgd(0.1), 0.0), fedavg(gradient_of(loss), optax.sgd(0.1)))
    )
    jax.tree.map(np.testing.assert_array_equal, sharp, plain)
