"""The server's step compressed on its way to the clients: what it changes, what it costs, who cannot have it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg, scaffold
from medvfm_jax.federated.codecs import make_codec
from medvfm_jax.federated.codecs.compose import identity
from medvfm_jax.federated.codecs.feedback import error_feedback
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.rounds.federation import make_round
from tests.federated.quadratics import cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
PROBLEM, D, N = cohort(), 5, 4
TOP = {"fraction": 0.2}  # one entry of five


def federated(rounds, down=None, **changed):
    return run(
        fedavg(gradient_of(loss), optax.sgd(0.1)), shard(PROBLEM, 1), rounds, parts={"down": down}, **changed
    )


def test_a_step_sent_exactly_changes_nothing() -> None:
    got, want = federated(5, identity()), federated(5)
    np.testing.assert_allclose(got[0].delta["w"], want[0].delta["w"], rtol=1e-13)
    assert got[0].residual == ()


def test_with_error_feedback_nothing_is_lost() -> None:
    """One step of FedAvg is gradient descent, so the fixed point is the optimum; its step goes to zero there."""
    down = error_feedback(make_codec("top_k", **TOP))
    server = federated(400, down)[0]
    np.testing.assert_allclose(server.delta["w"], PROBLEM.optimum, atol=1e-9)
    first = federated(1, down)[0]
    whole = federated(1)[0].delta["w"]
    assert np.count_nonzero(first.delta["w"]) == 1
    np.testing.assert_allclose(first.delta["w"] + first.residual.memory["w"], whole, rtol=1e-14)


def test_everybody_gets_every_message_and_the_whole_delta_once() -> None:
    """From the second round on, and by those who do not take part."""
    entry = 64 + 3  # a value and its place among five
    who = jnp.asarray([True, False, True, False])
    plain, compressed = federated(1, participation=who), make_codec("top_k", **TOP)
    assert float(plain[2].download_bits) == 2 * D * 64
    assert float(federated(1, compressed, participation=who)[2].download_bits) == N * D * 64
    later = float(federated(2, compressed, participation=who)[2].download_bits)
    assert later == N * entry
    assert float(federated(2, participation=who)[2].upload_bits) == 2 * D * 64


def test_rounds_without_anybody_send_nothing_new() -> None:
    down = error_feedback(make_codec("top_k", **TOP))
    before = federated(3, down)[0]
    after = federated(4, down, participation=lambda r: jnp.full(N, r < 3))[0]
    np.testing.assert_array_equal(after.delta["w"], before.delta["w"])
    np.testing.assert_array_equal(after.residual.memory["w"], before.residual.memory["w"])


def test_algorithms_that_send_more_than_the_delta_are_refused() -> None:
    with pytest.raises(BadFederation, match="other things than the delta"):
        make_round(scaffold(gradient_of(loss), 0.1), down=identity())
