"""FAMO, DWA, uncertainties and GradNorm over rounds with the quadratic cohort, written out in numpy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import algorithms
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM, RATE = cohort(), 0.1
WHO = [np.array(row, bool) for row in ([1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1])]


def losses(x):
    d = x - PROBLEM.centre
    return 0.5 * np.einsum("ni,nij,nj->n", d, PROBLEM.curvature, d)


def rounds(weigh):
    """x, with weights (n,) from (round's losses, last, earlier, who)."""
    x, last, earlier = np.zeros(5), np.zeros(4), np.zeros(4)
    for who in WHO:
        now, changes = losses(x), -RATE * PROBLEM.gradients(x)
        x = x + np.where(who, weigh(now, last, earlier, who), 0) @ changes
        last, earlier = np.where(who, now, last), np.where(who, last, earlier)
    return x


def found(algorithm):
    who = jnp.asarray(np.array(WHO))
    return run(algorithm, shard(PROBLEM, 1), len(WHO), participation=lambda r: who[r])[0]


def test_dwa():
    def weigh(now, last, earlier, who):
        ratio = np.where(earlier > 0, last / np.where(earlier > 0, earlier, 1), 1)
        e = np.where(who, np.exp(ratio / 0.5), 0)
        return e / e.sum()

    server = found(algorithms.dwa(gradient_of(loss), optax.sgd(RATE), 4, 0.5))
    np.testing.assert_allclose(server.delta["w"], rounds(weigh), rtol=1e-12)


def test_famo():
    logits = np.zeros(4)

    def weigh(now, last, earlier, who):
        both = who & (last > 0)
        z = np.where(both, np.exp(logits), 0)
        z = z / max(z.sum(), 1e-30)
        fell = np.where(both, np.log(np.where(both, last, 1)) - np.log(now), 0)
        logits[both] -= 0.5 * (z * (fell - z @ fell) + 0.01 * logits)[both]
        shares = np.where(who, np.exp(logits), 0)
        w = np.where(who, shares / shares.sum() / now, 0)
        return w / w.sum()

    server = found(algorithms.famo(gradient_of(loss), optax.sgd(RATE), 4, 0.5, 0.01))
    np.testing.assert_allclose(server.delta["w"], rounds(weigh), rtol=1e-12)
    np.testing.assert_allclose(server.state[1].learnt, logits, rtol=1e-10)
    assert np.abs(logits).max() > 0


def test_uncertainty():
    s = np.zeros(4)

    def weigh(now, last, earlier, who):
        s[who] -= 0.3 * (1 - np.exp(-s) * now)[who]
        e = np.where(who, np.exp(-s), 0)
        return e / e.sum()

    server = found(algorithms.uncertainty(gradient_of(loss), optax.sgd(RATE), 4, 0.3))
    np.testing.assert_allclose(server.delta["w"], rounds(weigh), rtol=1e-12)
    np.testing.assert_allclose(server.state[1].learnt, s, rtol=1e-10)


def test_grad_norm():
    w, first, x = np.ones(4), np.zeros(4), np.zeros(5)
    for who in WHO:
        now, changes = losses(x), -RATE * PROBLEM.gradients(x)
        first = np.where(who & (first == 0), now, first)
        n = np.linalg.norm(changes, axis=1)
        n, left = n / n[who].mean(), now / np.where(who, first, 1)
        aims = (w * n)[who].mean() * (left / left[who].mean()) ** 0.7
        moved = w - 0.1 * np.sign(w * n - aims) * n
        w = np.where(who, moved * w[who].sum() / moved[who].sum(), w)
        x = x + np.where(who, w, 0) / w[who].sum() @ changes
    server = found(algorithms.grad_norm(gradient_of(loss), optax.sgd(RATE), 4, 0.7, 0.1))
    np.testing.assert_allclose(server.delta["w"], x, rtol=1e-12)
    np.testing.assert_allclose(1 + server.state[1].learnt, w, rtol=1e-12)
    assert np.ptp(w) > 0.1
