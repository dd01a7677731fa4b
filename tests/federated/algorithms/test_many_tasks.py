"""Clients with tasks of their own on quadratics: fixed points of MaTU, MOCHA, MaT-FL and FedBone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.crosstask import task_covariance, task_precision, unify
from medvfm_jax.federated import algorithms
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.algorithms.test_clustered import two_centres
from tests.federated.quadratics import Cohort, cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
SGD = optax.sgd(0.2)


def own_models(algorithm, server, clients, n):
    return np.stack([algorithm.model(server, _of(clients.state, i))["w"] for i in range(n)])


def _of(state, i):
    return jax.tree.map(lambda x: x[i], state)


def isotropic(centre):
    n, d = centre.shape
    return Cohort(np.broadcast_to(np.eye(d), (n, d, d)).copy(), centre)


def test_matu_gives_each_client_its_part_of_one_vector():
    problem = cohort(3, 4)
    algorithm = algorithms.matu(gradient_of(loss), SGD, 3)
    server, clients, metrics = run(algorithm, shard(problem, 2), 1)
    vectors = []
    for a, b in zip(problem.curvature, problem.centre):
        w = np.zeros(4)
        for _ in range(2):
            w = w - 0.2 * a @ (w - b)
        vectors.append(w)
    expected = unify(np.array(vectors), np.ones(3, bool))
    found = own_models(algorithm, server, clients, 3)
    taken = expected.scales[:, None] * np.where(expected.masks, expected.vector, 0)
    np.testing.assert_allclose(found, taken, rtol=1e-10)
    np.testing.assert_allclose(server.delta["w"], taken.mean(0), rtol=1e-10)
    units = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert float(metrics.extra["least_cosine"]) == pytest.approx((units @ units.T).min())


def test_matu_keeps_what_an_absent_client_sent_and_starts_a_new_one_from_the_mean():
    problem = cohort(3, 4)
    algorithm = algorithms.matu(gradient_of(loss), SGD, 3)
    first = jnp.asarray([True, True, False])
    server, clients, _ = run(algorithm, shard(problem, 1), 1, participation=first)
    np.testing.assert_array_equal(own_models(algorithm, server, clients, 3)[2], server.delta["w"])
    assert list(server.state.known) == [True, True, False]


def test_tasks_that_do_not_conflict_reach_their_optima_by_matu():
    """Each client moves numbers of its own."""
    centre = np.array([[2.0, 0, 0, 0], [0, -3.0, 0, 0], [0, 0, 1.0, 4.0]])
    algorithm = algorithms.matu(gradient_of(loss), SGD, 3)
    server, clients, _ = run(algorithm, shard(isotropic(centre), 3), 40)
    np.testing.assert_allclose(own_models(algorithm, server, clients, 3), centre, atol=1e-6)


def test_mocha_is_its_local_problem():
    problem, strength, ridge, rate = isotropic(cohort(3, 4).centre), 0.3, 0.2, 0.1
    algorithm = algorithms.mocha(gradient_of(loss), optax.sgd(rate), 3, strength, ridge)
    server, clients, _ = run(algorithm, shard(problem, 2), 3)
    learnt, precision = np.zeros((3, 4)), np.eye(3)
    for _ in range(3):
        new = learnt.copy()
        for i in range(3):
            others = precision[i] @ learnt - precision[i, i] * learnt[i]
            for _ in range(2):
                gradient = new[i] - problem.centre[i] + strength * (precision[i, i] * new[i] + others)
                new[i] = new[i] - rate * gradient
        learnt = new
        precision = np.asarray(task_precision(task_covariance(learnt @ learnt.T), ridge))
    np.testing.assert_allclose(own_models(algorithm, server, clients, 3), learnt, rtol=1e-8)
    np.testing.assert_allclose(server.delta["w"], learnt.mean(0), rtol=1e-8)


def test_mocha_without_strength_is_local_training_and_with_it_draws_related_tasks_together():
    problem = two_centres()
    alone = algorithms.mocha(gradient_of(loss), SGD, 6, strength=0.0)
    server, clients, _ = run(alone, shard(problem, 2), 60)
    np.testing.assert_allclose(own_models(alone, server, clients, 6), problem.centre, rtol=1e-6)
    related = algorithms.mocha(gradient_of(loss), SGD, 6, strength=0.3)
    server, clients, _ = run(related, shard(problem, 2), 60)
    found = own_models(related, server, clients, 6)
    for group in (found[::2], found[1::2]):
        assert group.std(0).sum() < problem.centre[::2].std(0).sum()
    assert np.sign(found).mean(1)[0] == 1  # still near its own centre and not the other
    assert np.sign(found).mean(1)[1] == -1


def test_mat_fl_averages_within_groups_of_the_round():
    problem = two_centres()
    algorithm = algorithms.mat_fl(gradient_of(loss), SGD, 6, r"nothing")
    server, clients, metrics = run(algorithm, shard(problem, 2), 1)
    found = own_models(algorithm, server, clients, 6)
    ends = (1 - 0.8**2) * problem.centre  # two steps of rate 0.2 on an isotropic quadratic
    for i in range(6):
        np.testing.assert_allclose(found[i], ends[i % 2 :: 2].mean(0), rtol=1e-10)
    assert float(metrics.extra["clusters"]) == pytest.approx(2)


def test_mat_fl_leaves_an_absent_client_alone():
    problem = two_centres()
    algorithm = algorithms.mat_fl(gradient_of(loss), SGD, 6, r"nothing")
    present = jnp.arange(6) != 3
    server, clients, metrics = run(algorithm, shard(problem, 2), 1, participation=present)
    np.testing.assert_array_equal(own_models(algorithm, server, clients, 6)[3], np.zeros(3))
    assert float(metrics.extra["clusters"]) == pytest.approx(2)  # of those that are there


@pytest.mark.parametrize("name", ["mat_fl", "fedbone"])
def test_what_is_personal_never_leaves(name):
    def both(delta, batch, key):
        a, b = batch
        return loss({"w": delta["w"] + delta["head"]}, (a, b), key)

    problem = cohort(3, 4)
    more = (3,) if name == "mat_fl" else ()
    algorithm = getattr(algorithms, name)(gradient_of(both), SGD, *more, r"head")
    start = {"w": jnp.zeros(4), "head": jnp.zeros(4)}
    server, clients, _ = run(algorithm, shard(problem, 1), 2, delta=start)
    assert server.delta["head"] is None
    models = [algorithm.model(server, _of(clients.state, i)) for i in range(3)]
    assert not np.allclose(models[0]["head"], models[1]["head"])
    with pytest.raises(BadFederation, match="matches all of it"):
        getattr(algorithms, name)(gradient_of(both), SGD, *more, r".*").init_server(start)


def test_fedbone_without_conflicts_is_fedper_of_equal_clients():
    problem = isotropic(np.abs(cohort(3, 4).centre))  # all changes point into one orthant
    start = {"w": jnp.zeros(4), "head": jnp.zeros(1)}

    def both(delta, batch, key):
        return loss({"w": delta["w"]}, batch, key) + 0.5 * (delta["head"] ** 2).sum()

    found, _, _ = run(algorithms.fedbone(gradient_of(both), SGD, r"head"), shard(problem, 1), 2, delta=start)
    mean, _, _ = run(algorithms.fedavg(gradient_of(loss), SGD), shard(problem, 1), 2)
    np.testing.assert_allclose(found.delta["w"], mean.delta["w"], rtol=1e-10)
