"""The server optimizers against their formulas in numpy, and against optax where the rules agree."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedadagrad, fedadam, fedavg, fedavgm, fedopt, fedyogi
from medvfm_jax.federated.algorithms.server_optimizers import adaptive_server
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
CHANGES = np.random.default_rng(0).normal(size=(6, 3))


@pytest.mark.parametrize("rule", ["adagrad", "yogi", "adam"])
def test_adaptive_rules(rule: str) -> None:
    rate, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    optimizer, x, m, v = adaptive_server(rule, rate), jnp.zeros(3), np.zeros(3), np.full(3, tau**2)
    state, want = optimizer.init(x), np.zeros(3)
    for d in CHANGES:
        updates, state = optimizer.update(jnp.asarray(-d), state, x)
        x = optax.apply_updates(x, updates)
        m = beta1 * m + (1 - beta1) * d
        v = {
            "adagrad": v + d**2,
            "yogi": v - (1 - beta2) * d**2 * np.sign(v - d**2),
            "adam": beta2 * v + (1 - beta2) * d**2,
        }[rule]
        want = want + rate * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(x, want, rtol=1e-13)


@pytest.mark.parametrize(("make", "share"), [(fedadagrad, 1.0), (fedyogi, 0.01), (fedadam, 0.01)])
def test_a_first_round_is_the_rule_on_the_mean_change(make, share: float) -> None:
    """All three have v = tau^2 + share d^2 where d^2 > tau^2, but for Adam's 0.99 tau^2; m = 0.1 d with momentum."""
    data, rate, tau = shard(cohort(), 3), 0.1, 1e-3
    change = np.asarray(run(fedavg(gradient_of(loss), optax.sgd(0.1)), data, 1)[0].delta["w"])
    assert (change**2 > tau**2).all()
    found = run(make(gradient_of(loss), optax.sgd(0.1), rate, tau), data, 1)[0].delta["w"]
    m = change if make is fedadagrad else 0.1 * change
    v = (0.99 if make is fedadam else 1.0) * tau**2 + share * change**2
    np.testing.assert_allclose(found, rate * m / (np.sqrt(v) + tau), rtol=1e-12)


def test_adam_rule_is_adam_of_optax_without_bias_correction() -> None:
    """With the correction put into rate and epsilon at step t: rate sqrt(1-b2^t)/(1-b1^t), tau/sqrt(1-b2^t)."""
    ours, state = adaptive_server("adam", 0.1, tau=1e-8), None
    t = len(CHANGES)
    adam = optax.adam(0.1 * (1 - 0.9**t) / np.sqrt(1 - 0.99**t), 0.9, 0.99, eps=1e-8 / np.sqrt(1 - 0.99**t))
    state, other = ours.init(jnp.zeros(3)), adam.init(jnp.zeros(3))
    for d in CHANGES:
        mine, state = ours.update(jnp.asarray(-d), state)
        theirs, other = adam.update(jnp.asarray(-d), other)
    np.testing.assert_allclose(mine, theirs, rtol=1e-7)  # v starts at tau^2 here, at 0 there


def test_fedavgm_without_momentum_is_fedavg_and_with_it_accumulates() -> None:
    data = shard(cohort(), 3)
    plain = run(fedavg(gradient_of(loss), optax.sgd(0.1)), data, 2)[0].delta["w"]
    np.testing.assert_allclose(
        run(fedavgm(gradient_of(loss), optax.sgd(0.1), momentum=0.0), data, 2)[0].delta["w"], plain
    )
    x1 = np.asarray(run(fedavg(gradient_of(loss), optax.sgd(0.1)), data, 1)[0].delta["w"])
    heavy = np.asarray(run(fedavgm(gradient_of(loss), optax.sgd(0.1), momentum=0.5), data, 2)[0].delta["w"])
    np.testing.assert_allclose(heavy, np.asarray(plain) + 0.5 * x1, rtol=1e-13)  # v2 = 0.5 v1 + change


def test_fedadam_reaches_the_neighbourhood_of_the_optimum() -> None:
    problem = cohort()
    server, _, _ = run(fedadam(gradient_of(loss), optax.sgd(0.01), 0.03), shard(problem, 2), 400)
    assert np.linalg.norm(server.delta["w"] - problem.optimum) < 0.05


def test_fedopt_feeds_the_mean_change_to_an_optimizer_of_optax() -> None:
    """With momentum it is FedAvgM, whose v is that of optax.trace."""
    data, momentum = shard(cohort(), 3), optax.sgd(0.7, momentum=0.5)
    found = run(fedopt(gradient_of(loss), optax.sgd(0.1), momentum), data, 3)[0].delta["w"]
    same = run(fedavgm(gradient_of(loss), optax.sgd(0.1), 0.7, momentum=0.5), data, 3)[0].delta["w"]
    np.testing.assert_allclose(found, same, rtol=1e-13)
