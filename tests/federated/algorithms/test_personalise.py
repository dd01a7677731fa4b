"""Personal parts stay at home; Ditto's and FedRep's closed forms, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms.personalise import NORM_LEAVES, ditto, fedbn, fedper, fedrep
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.personal_parts import join_personal, split_like, split_personal
from tests.federated.quadratics import cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM = cohort()
EYE = np.eye(5)
DELTA = {
    "tune": {"neck/norm1": {"scale": np.zeros(2), "bias": np.zeros(2)}, "neck/conv": {"kernel": np.ones(3)}}
}


def split_loss(delta: dict, batch: tuple, key: jax.Array) -> jax.Array:
    """The quadratic of w = body + head, so that both parts have the same gradient."""
    return loss({"w": delta["body"]["w"] + delta["head"]["w"]}, batch, key)


def start() -> dict:
    return {"body": {"w": jnp.zeros(5)}, "head": {"w": jnp.zeros(5)}}


def test_split_and_join_are_inverse_and_the_pattern_of_norms_is_right() -> None:
    shared, personal = split_personal(DELTA, NORM_LEAVES)
    assert [x.shape for x in jax.tree.leaves(shared)] == [(3,)]
    assert [x.shape for x in jax.tree.leaves(personal)] == [(2,), (2,)]
    jax.tree.map(np.testing.assert_array_equal, join_personal(shared, personal), DELTA)
    jax.tree.map(np.testing.assert_array_equal, split_like(DELTA, shared), (shared, personal))
    by_name = split_personal(DELTA, lambda delta: frozenset({"tune/neck/conv/kernel"}))
    assert len(jax.tree.leaves(by_name[1])) == 1


def test_fedper_sends_the_body_only_and_heads_differ() -> None:
    federated = run(
        fedper(gradient_of(split_loss), optax.sgd(0.1), "head/.*"), shard(PROBLEM, 3), 2, delta=start()
    )
    server, clients, metrics = federated
    assert server.delta["head"]["w"] is None
    assert len(np.unique(clients.state["head"]["w"][:, 0])) == 4
    assert metrics.upload_bits == 4 * 5 * 64
    assert metrics.download_bits == 4 * 5 * 64


def test_fedbn_is_fedper_on_normalisation_layers() -> None:
    def normed(delta: dict, batch: tuple, key: jax.Array) -> jax.Array:
        return loss({"w": delta["conv"]["kernel"] * (1 + delta["norm1"]["scale"])}, batch, key)

    delta = {"conv": {"kernel": jnp.ones(5)}, "norm1": {"scale": jnp.zeros(5)}}
    server, clients, _ = run(fedbn(gradient_of(normed), optax.sgd(0.1)), shard(PROBLEM, 2), 1, delta=delta)
    assert server.delta["norm1"]["scale"] is None
    assert np.abs(np.diff(clients.state["norm1"]["scale"], axis=0)).min() > 0


def test_fedrep_trains_the_head_first_then_the_body() -> None:
    data, algorithm = shard(PROBLEM, 3), fedrep(gradient_of(split_loss), optax.sgd(0.1, 0.9), "head/.*", 2)
    head_only = run(algorithm, data, 1, delta=start(), steps=jnp.full(4, 2))
    np.testing.assert_array_equal(head_only[0].delta["body"]["w"], 0)
    server, clients, _ = run(algorithm, data, 1, delta=start())
    np.testing.assert_array_equal(clients.state["head"]["w"], head_only[1].state["head"]["w"])
    w = np.asarray(clients.state["head"]["w"])
    grads = np.einsum("nij,nj->ni", PROBLEM.curvature, w - PROBLEM.centre)
    # one step, and the momentum of the head is not the body's
    np.testing.assert_allclose(server.delta["body"]["w"], -0.1 * grads.mean(0), rtol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_ditto_solves_the_regularised_problem_of_every_client(strength: float) -> None:
    """v_i = (A_i + lambda I)^-1 (A_i b_i + lambda x); lambda = 0 gives the local model."""
    data = shard(PROBLEM, 200)
    _, clients, _ = run(ditto(gradient_of(loss), optax.sgd(0.2), strength), data, 2)
    x = run(ditto(gradient_of(loss), optax.sgd(0.2), strength), data, 1)[0].delta[
        "w"
    ]  # what round two regularised towards
    for a, b, v in zip(PROBLEM.curvature, PROBLEM.centre, np.asarray(clients.state["w"]), strict=True):
        np.testing.assert_allclose(v, np.linalg.solve(a + strength * EYE, a @ b + strength * x), atol=1e-12)
