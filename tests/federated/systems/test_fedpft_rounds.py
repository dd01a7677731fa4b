"""FedPFT in rounds: the numbers of clients that really have only the proxy, its traffic, and neurons chosen anew."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.adapters import from_config
from medvfm_jax.federated import BadFederation, Shard, make_round
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.systems.fedpft_rounds import PART, fedpft, fedpft_parts
from tests.federated.quadratics import quick_jit
from tests.federated.systems.proxy_ffn import cut, plug_back, proxy_apply, select_neurons
from tests.federated.systems.tiny import BATCH, DIM, SPEC, STEPS, TOKENS, chain_of, tiny

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
N = 2
X = jnp.asarray(RNG.normal(size=(N, STEPS, BATCH, TOKENS, DIM)))
Y = jnp.asarray(RNG.normal(size=X.shape))
SHARD = Shard((X, Y), jnp.asarray([1.0, 3.0]))


def setting():
    model, params = tiny()
    adapter = from_config(chain_of(fedpft_parts(SPEC)))
    return model, params, adapter, adapter.init(jax.random.key(0), model.encode, params, X[0, 0, 0])


def loss_of(adapted, params):
    def loss(delta, batch, key):
        images, wanted = batch
        return ((jax.vmap(lambda image: adapted(params, delta, image))(images) - wanted) ** 2).mean()

    return loss


def federate(rounds, **options):
    """States (server, clients, metrics) after each round."""
    model, params, adapter, delta = setting()
    algorithm = fedpft(
        gradient_of(loss_of(adapter.wrap(model.encode), params)), optax.sgd(0.1), params, **options
    )
    federation = make_round(algorithm)
    state, step, states = federation.init(delta, SHARD), quick_jit(federation.round), []
    for _ in range(rounds):
        state = step(*state[:2], SHARD, jnp.ones(N, bool), jnp.full(N, STEPS), jax.random.key(0))
        states.append(state)
    return states


@pytest.mark.slow
def test_a_round_is_that_of_clients_with_a_real_proxy():
    model, params, adapter, _ = setting()
    selection = select_neurons(params, 0.5)
    proxy = cut(params, selection)
    loss = loss_of(adapter.wrap(proxy_apply(model.encode, selection)), proxy)
    changes = []
    for i in range(N):
        delta = adapter.init(jax.random.key(0), model.encode, proxy, X[0, 0, 0])
        for k in range(STEPS):
            grads = jax.grad(loss)(delta, (X[i, k], Y[i, k]), None)
            delta = jax.tree.map(lambda d, g: d - 0.1 * g, delta, grads)
        changes.append(delta)
    mean = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *changes)
    want = plug_back(params, adapter.merge(proxy, mean), selection)
    server, _, metrics = federate(1)[0]
    found = adapter.merge(params, server.delta)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    size = sum(leaf.size for leaf in jax.tree.leaves(mean))
    full = sum(leaf.size for leaf in jax.tree.leaves(server.delta))
    assert size < full
    assert metrics.upload_bits == metrics.download_bits == N * 64 * size


def test_neurons_are_chosen_anew_from_the_full_model():
    _, params, adapter, _ = setting()
    for every in (1, 2):
        states = federate(3, realign_every=every)
        for rounds in (1, 2, 3):
            last = rounds - rounds % every
            then = params if last == 0 else adapter.merge(params, states[last - 1][0].delta)
            for path, wanted in select_neurons(then, 0.5).items():
                np.testing.assert_array_equal(states[rounds - 1][0].state[path], wanted)


@pytest.mark.slow
def test_everything_kept_is_plain_tuning():
    model, params, adapter, delta = setting()
    server, *_ = federate(1, keep=1.0)[0]
    loss = loss_of(adapter.wrap(model.encode), params)
    changed = []
    for i in range(N):
        moved = delta
        for k in range(STEPS):
            moved = jax.tree.map(
                lambda d, g: d - 0.1 * g, moved, jax.grad(loss)(moved, (X[i, k], Y[i, k]), None)
            )
        changed.append(moved)
    want = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *changed)
    for a, b in zip(jax.tree.leaves(server.delta), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadFederation, match="keep must be above 0"):
        fedpft(gradient_of(None), optax.sgd(0.1), keep=0.0)
    with pytest.raises(BadFederation, match="no feed-forward network"):
        fedpft(gradient_of(None), optax.sgd(0.1)).init_server(
            {PART: {"image_encoder/x": {"kernel": jnp.ones((2, 2))}}}
        )
