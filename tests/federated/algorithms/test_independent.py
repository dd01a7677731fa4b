"""Baselines and kept optimizers: with Adam's moments kept, rounds of one client are one sequence of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.algorithms.independent import independent
from medvfm_jax.federated.core.kept_optimizer import KeptOptimizer, without_optimizer
from medvfm_jax.federated.core.local_training import gradient_of
from tests.federated.quadratics import KEY, cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = cohort(n=1)
STEPS, ROUNDS = 3, 4
ADAM = optax.adam(0.1)


def trained(restart_every: int) -> np.ndarray:
    """Plain Adam, its state started anew every so many steps."""
    delta, batch = {"w": jnp.zeros(5)}, jax.tree.map(lambda x: x[0], tuple(PROBLEM))
    state = ADAM.init(delta)
    for i in range(STEPS * ROUNDS):
        state = ADAM.init(delta) if i % restart_every == 0 else state
        updates, state = ADAM.update(jax.grad(loss)(delta, batch, KEY), state, delta)
        delta = optax.apply_updates(delta, updates)
    return np.asarray(delta["w"])


@pytest.mark.parametrize(
    ("optimizer", "restart_every"),
    [(ADAM, STEPS), (KeptOptimizer(*ADAM), STEPS * ROUNDS)],
    ids=["anew", "kept"],
)
@pytest.mark.parametrize("make", [independent, fedavg])
def test_the_optimizer_starts_anew_each_round_unless_it_is_kept(make, optimizer, restart_every):
    server, clients, _ = run(make(gradient_of(loss), optimizer), shard(PROBLEM, STEPS), ROUNDS)
    found = without_optimizer(clients.state)["w"][0] if make is independent else server.delta["w"]
    np.testing.assert_allclose(found, trained(restart_every), rtol=1e-12)
    assert abs(trained(STEPS) - trained(STEPS * ROUNDS)).max() > 1e-2
