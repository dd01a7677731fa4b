"""q-FedAvg against its formula, MOON where its gradient is known, FedDF on identical and on known ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg, feddf, moon, qfedavg
from medvfm_jax.federated.algorithms.contrastive import model_contrast
from medvfm_jax.federated.algorithms.ensemble import ensemble_loss
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import Cohort, cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = cohort()


def test_qfedavg_is_its_formula() -> None:
    eta, q = 0.1, 2.0
    server, _, _ = run(qfedavg(gradient_of(loss), eta, q), shard(PROBLEM, 1), 1)
    grads = PROBLEM.gradients(np.zeros(5))  # one step: L (x - y_i) is the gradient
    value = 0.5 * np.einsum("ni,nij,nj->n", PROBLEM.centre, PROBLEM.curvature, PROBLEM.centre)
    size = q * value ** (q - 1) * (grads**2).sum(1) + value**q / eta
    np.testing.assert_allclose(
        server.delta["w"], -(value[:, None] ** q * grads).sum(0) / size.sum(), rtol=1e-13
    )


def test_qfedavg_without_q_is_fedavg_of_equal_clients() -> None:
    fair = run(qfedavg(gradient_of(loss), 0.1, 0.0), shard(PROBLEM, 3, [1.0, 5.0, 2.0, 9.0]), 1)[0].delta["w"]
    np.testing.assert_allclose(
        fair, run(fedavg(gradient_of(loss), optax.sgd(0.1)), shard(PROBLEM, 3), 1)[0].delta["w"]
    )


def test_qfedavg_makes_losses_more_equal() -> None:
    spread, worst = [], []
    for q in (0.0, 4.0):
        x = (
            np.asarray(run(qfedavg(gradient_of(loss), 0.05, q), shard(PROBLEM, 1), 300)[0].delta["w"])
            - PROBLEM.centre
        )
        value = 0.5 * np.einsum("ni,nij,nj->n", x, PROBLEM.curvature, x)
        spread.append(value.std())
        worst.append(value.max())
    assert spread[1] < 0.9 * spread[0]
    assert worst[1] < 0.9 * worst[0]


def test_contrast_of_equal_models_is_log_two_without_gradient() -> None:
    z = jnp.asarray([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    np.testing.assert_allclose(model_contrast(z + 1, z, z, 0.5), np.log(2), rtol=1e-15)
    np.testing.assert_allclose(
        jax.grad(lambda new: model_contrast(new, z, z, 0.5).sum())(z + 1), 0, atol=1e-15
    )
    assert float(model_contrast(z, z, -z, 0.5)[0]) == pytest.approx(np.log1p(np.exp(-4)))
    assert jnp.isfinite(jax.grad(lambda new: model_contrast(new, z, -z, 0.5).sum())(0 * z)).all()


def test_moon_is_fedavg_in_its_first_round_and_not_in_its_second() -> None:
    """At the start the previous model is the global one, so the contrast has no gradient along the first step."""
    data = shard(PROBLEM, 1)
    contrast = moon(
        gradient_of(loss), lambda delta, batch: delta["w"][None] * batch[1], optax.sgd(0.1), mu=5.0
    )
    start = {"w": jnp.ones(5)}
    for rounds, equal in ((1, True), (2, False)):
        want = run(fedavg(gradient_of(loss), optax.sgd(0.1)), data, rounds, delta=start)[0].delta["w"]
        server, clients, _ = run(contrast, data, rounds, delta=start)
        assert np.allclose(server.delta["w"], want, atol=1e-14) == equal
    assert len(np.unique(clients.state["w"][:, 0])) == 4  # each keeps its own last model


def test_feddf_of_identical_clients_changes_nothing() -> None:
    """With plain SGD on the server: Adam would divide the rounding errors by their own size."""
    same = Cohort(np.repeat(PROBLEM.curvature[:1], 4, 0), np.repeat(PROBLEM.centre[:1], 4, 0))
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 5)))
    algorithm = feddf(gradient_of(loss), optax.sgd(0.1), squares, inputs, optax.sgd(1.0))
    plain, distilled = (
        run(a, shard(same, 2), 1)[0].delta["w"]
        for a in (fedavg(gradient_of(loss), optax.sgd(0.1)), algorithm)
    )
    np.testing.assert_allclose(distilled, plain, atol=1e-15)


def squares(delta: dict, x: jax.Array) -> jax.Array:
    """Logits that are nonlinear in the delta, so that their mean is not the logits of the mean."""
    return x @ jnp.stack([delta["w"] ** 2, 0 * delta["w"]], 1)


def test_feddf_pulls_the_average_to_the_ensemble_of_those_present() -> None:
    x, present = jnp.eye(5)[None].repeat(400, 0), jnp.asarray([True, True, False, True])
    base = fedavg(gradient_of(loss), optax.sgd(0.3))
    algorithm = feddf(gradient_of(loss), optax.sgd(0.3), squares, x, optax.adam(0.02))
    data, start = shard(PROBLEM, 3), {"w": jnp.full(5, 2.0)}
    average, distilled = (
        run(a, data, 1, delta=start, participation=present)[0].delta for a in (base, algorithm)
    )
    alone = [run(base, data, 1, delta=start, participation=jnp.arange(4) == i)[0].delta for i in (0, 1, 3)]
    teacher = jnp.mean(jnp.stack([squares(d, x[0]) for d in alone]), 0)
    before, after = (float(ensemble_loss(squares(d, x[0]), teacher)) for d in (average, distilled))
    assert before > 1e-3
    assert after < 1e-4 * before
