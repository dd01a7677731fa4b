"""Clustered federated learning on quadratics around two points: every client reaches the optimum of its cluster."""

import jax
import numpy as np
import optax
import pytest

from medvfm_jax.federated import algorithms
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import Cohort, cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")


def two_centres():
    near = 0.1 * cohort(6, 3).centre
    near[::2] += 2
    near[1::2] -= 2
    return Cohort(np.broadcast_to(np.eye(3), (6, 3, 3)).copy(), near)


def test_clients_reach_the_optimum_of_their_cluster():
    problem = two_centres()
    algorithm = algorithms.clustered(gradient_of(loss), optax.sgd(0.5), 6)
    server, clients, metrics = run(algorithm, shard(problem, 2), 60)
    for i in range(6):
        own = algorithm.model(server, clients.state[i])
        np.testing.assert_allclose(own["w"], problem.centre[i % 2 :: 2].mean(0), rtol=1e-9)
    assert float(metrics.extra["clusters"]) == pytest.approx(2)
    np.testing.assert_allclose(server.delta["w"], problem.centre.mean(0), rtol=1e-8)


def test_before_anything_parts_it_is_the_mean_of_equal_clients():
    problem = cohort()
    algorithm = algorithms.clustered(gradient_of(loss), optax.sgd(0.1), 4, stationary=0.0)
    found, _, _ = run(algorithm, shard(problem, 2, [1, 5, 2, 9]), 3)
    expected, _, _ = run(algorithms.fedavg(gradient_of(loss), optax.sgd(0.1)), shard(problem, 2), 3)
    np.testing.assert_allclose(found.delta["w"], expected.delta["w"], rtol=1e-12)
    assert all(np.array_equal(x[0], x[1]) for x in jax.tree.leaves(found.state.models))
