"""Surgery on clients' changes and FedHCA2, each against its formula in numpy, in float64."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.crosstask import gradient_surgery
from medvfm_jax.federated import algorithms
from medvfm_jax.federated.algorithms.fedhca2 import cross_attention
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Shard
from tests.federated.quadratics import cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = cohort()
SGD = optax.sgd(0.1)
WEIGHTS = {
    "cagrad": lambda gram: gradient_surgery.cagrad(gram, 0.4) / 1.16,
    "mgda": gradient_surgery.mgda,
    "nash_mtl": lambda gram: gradient_surgery.nash_mtl(gram) / gradient_surgery.nash_mtl(gram).sum(),
    "imtl_g": gradient_surgery.imtl_g,
}


def changes():
    """Of one step from zero."""
    found = -0.1 * PROBLEM.gradients(np.zeros(5))
    assert (found @ found.T).min() < 0
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("cagrad", "imtl_g"))) for n in WEIGHTS]
)
def test_a_round_is_the_weighted_sum_of_changes(name):
    d = changes()
    server, _, metrics = run(
        getattr(algorithms, name)(gradient_of(loss), SGD), shard(PROBLEM, 1, [1, 5, 2, 9]), 1
    )
    np.testing.assert_allclose(
        server.delta["w"], np.asarray(WEIGHTS[name](jnp.asarray(d @ d.T))) @ d, rtol=1e-10
    )
    lengths = np.linalg.norm(d, axis=1)
    cosine = (d @ d.T / np.outer(lengths, lengths))[np.triu_indices(4, 1)]
    np.testing.assert_allclose(metrics.extra["least_cosine"], cosine.min(), rtol=1e-13)
    np.testing.assert_allclose(metrics.extra["conflicting_pairs"], (cosine < 0).mean(), rtol=1e-13)


@pytest.mark.parametrize("name", [*WEIGHTS, "pcgrad"])
def test_the_absent_have_no_part(name):
    who = jnp.asarray([True, False, True, False])
    make = getattr(algorithms, name)
    part, _, _ = run(make(gradient_of(loss), SGD), shard(PROBLEM, 1), 1, participation=who)
    alone = type(PROBLEM)(PROBLEM.curvature[::2], PROBLEM.centre[::2])
    whole, _, _ = run(make(gradient_of(loss), SGD), shard(alone, 1), 1)
    np.testing.assert_allclose(part.delta["w"], whole.delta["w"], rtol=1e-10)


def test_pcgrad_without_conflicts_is_the_mean():
    same = type(PROBLEM)(PROBLEM.curvature[[0, 0]], PROBLEM.centre[[0, 0]])
    found, expected = (
        run(make(gradient_of(loss), SGD), shard(same, 2), 2)[0].delta["w"]
        for make in (algorithms.pcgrad, algorithms.fedavg)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def two_part_loss(delta, batch, key):
    del key
    wanted = {"encoder": {"w": batch[0]}, "decoder": {"w": batch[1], "b": batch[2]}}
    return sum(0.5 * ((x - y) ** 2).sum() for x, y in zip(jax.tree.leaves(delta), jax.tree.leaves(wanted)))


def attention(d):
    scores = np.exp(d @ d.T / np.sqrt(d.shape[1]))
    return scores / scores.sum(1, keepdims=True) @ d


@pytest.mark.slow
def test_fedhca2_is_its_algorithm():
    """Three rounds of one step each, with a model per client, written out in numpy."""
    n, rate, hyper, c = 3, 0.1, 0.5, 0.4
    rng = np.random.default_rng(0)
    wanted = [rng.normal(size=(n, 4)), rng.normal(size=(n, 3)), rng.normal(size=(n, 2))]
    data = Shard(tuple(jnp.asarray(x)[:, None] for x in wanted), jnp.ones(n))
    delta = {"encoder": {"w": jnp.zeros(4)}, "decoder": {"w": jnp.zeros(3), "b": jnp.zeros(2)}}
    algorithm = algorithms.fedhca2(gradient_of(two_part_loss), optax.sgd(rate), n, c, 0.3, hyper)
    server, clients, _ = run(algorithm, data, 3, delta=delta)

    models, psi, beta = [np.zeros_like(x) for x in wanted], np.full(n, 0.3), np.full(n, 0.3)
    received = [np.zeros_like(x) for x in wanted]
    for _ in range(3):
        d = [-rate * (x - y) for x, y in zip(models, wanted)]
        psi = psi + hyper * (d[0] * received[0]).sum(1)
        beta = beta + hyper * ((d[1] * received[1]).sum(1) + (d[2] * received[2]).sum(1))
        weights = np.asarray(gradient_surgery.cagrad(jnp.asarray(d[0] @ d[0].T), c))
        update = weights @ d[0] / (1 + c**2)
        received = [np.broadcast_to(update, d[0].shape), attention(d[1]), attention(d[2])]
        shares = [np.clip(s, 0, 1)[:, None] for s in (psi, beta, beta)]
        models = [x + change + s * r for x, change, s, r in zip(models, d, shares, received)]
    assert psi.std() > 0
    for i in range(n):
        own = algorithm.model(server, jax.tree.map(operator.itemgetter(i), clients.state))
        np.testing.assert_allclose(own["encoder"]["w"], models[0][i], rtol=1e-9)
        np.testing.assert_allclose(own["decoder"]["w"], models[1][i], rtol=1e-9)
        np.testing.assert_allclose(own["decoder"]["b"], models[2][i], rtol=1e-9)
    np.testing.assert_allclose(clients.state.encoder, psi, rtol=1e-9)
    np.testing.assert_allclose(clients.state.decoder["decoder"], beta, rtol=1e-9)


def test_a_client_that_was_away_attends_to_nobody_and_disturbs_nobody():
    d = np.random.default_rng(0).normal(size=(3, 4))
    held = np.array([d[0], np.full(4, np.nan), d[1]])
    found = cross_attention(jnp.asarray(np.nan_to_num(held)), jnp.asarray([True, False, True]))
    np.testing.assert_allclose(found[np.array([0, 2])], attention(d[:2]), rtol=1e-13)
    assert float(jnp.abs(found[1]).max()) == 0
