"""SCAFFOLD, FedNova and FedDyn reach the true optimum of heterogeneous quadratics, in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg, feddyn, fednova, scaffold
from medvfm_jax.federated.algorithms.normalised import effort
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import cohort, loss, run, shard, weighted_optimum

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = cohort()


def check_scaffold(server: tuple, clients: tuple, gap: float) -> None:
    np.testing.assert_allclose(server.delta["w"], PROBLEM.optimum, atol=gap)
    np.testing.assert_allclose(server.state["w"], clients.state["w"].mean(0), atol=1e-14)
    np.testing.assert_allclose(clients.state["w"], PROBLEM.gradients(PROBLEM.optimum), atol=10 * gap)


def test_scaffold_with_everybody_and_with_half() -> None:
    """Also: c stays the mean of the c_i, and c_i becomes the gradient at the optimum."""
    data, algorithm = shard(PROBLEM, 10), scaffold(gradient_of(loss), 0.05)
    check_scaffold(*run(algorithm, data, 150)[:2], 2e-14)
    alternating = run(algorithm, data, 700, participation=lambda r: jnp.arange(4) % 2 == (r // 3) % 2)
    check_scaffold(*alternating[:2], 1e-13)


def test_feddyn_solved_exactly_reaches_the_optimum() -> None:
    server, clients, _ = run(feddyn(gradient_of(loss), optax.sgd(0.3), 0.5), shard(PROBLEM, 200), 150)
    np.testing.assert_allclose(server.delta["w"], PROBLEM.optimum, atol=2e-14)
    np.testing.assert_allclose(clients.state["w"], PROBLEM.gradients(PROBLEM.optimum), atol=1e-13)


def test_unequal_effort_moves_the_optimum_of_fedavg_and_not_of_fednova() -> None:
    counts, eta = jnp.asarray([2, 5, 10, 20]), 1e-3
    data = shard(PROBLEM, 20)
    plain = run(fedavg(gradient_of(loss), optax.sgd(eta)), data, 1500, steps=counts)[0].delta["w"]
    nova = run(fednova(gradient_of(loss), eta), data, 1500, steps=counts)[0].delta["w"]
    biased = weighted_optimum(PROBLEM, np.asarray(counts, float))
    apart = np.linalg.norm(biased - PROBLEM.optimum)
    assert np.linalg.norm(plain - biased) < 0.05 * apart
    assert np.linalg.norm(nova - PROBLEM.optimum) < 0.05 * apart


def test_fednova_counts_a_clients_own_rate_as_effort() -> None:
    """Twice the rate is twice the effort: with one step each the round is plain gradient descent, longer."""
    rates = jnp.asarray([1.0, 2.0, 1.0, 4.0])
    server, _, _ = run(fednova(gradient_of(loss), 0.01), shard(PROBLEM, 1)._replace(rate=rates), 1)
    want = -0.01 * rates.mean() * PROBLEM.gradients(np.zeros(5)).mean(0)
    np.testing.assert_allclose(server.delta["w"], want, rtol=1e-13)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    data = shard(PROBLEM, 4)
    nova, plain = (
        run(a, data, 1)[0].delta["w"]
        for a in (fednova(gradient_of(loss), 0.1), fedavg(gradient_of(loss), optax.sgd(0.1)))
    )
    np.testing.assert_allclose(nova, plain, rtol=1e-13)


@pytest.mark.parametrize(("momentum", "shrink"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.03)])
def test_effort_is_the_sum_of_gradient_factors(momentum: float, shrink: float) -> None:
    """Run the optimizer on the constant gradient 1: the distance travelled over eta is |a|_1."""
    y = velocity = 0.0
    for _ in range(7):
        velocity = momentum * velocity + 1 + (shrink / 0.1) * y
        y -= 0.1 * velocity
    assert float(effort(jnp.asarray(7.0), momentum, shrink)) == pytest.approx(-y / 0.1, rel=1e-13)


def test_fednova_refuses_momentum_with_a_proximal_term() -> None:
    with pytest.raises(ValueError, match="cannot be combined"):
        fednova(gradient_of(loss), 0.1, momentum=0.9, mu=0.1)
