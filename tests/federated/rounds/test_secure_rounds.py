"""Secure aggregation as a reduction of a round: the plain round to the resolution of the grid, on every backend."""

import functools

import jax
import numpy as np
import optax
import pytest

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated import make_round
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy.discrete import choose
from medvfm_jax.federated.secure.secure_sum import distributed_noise, fixed_point
from tests.federated.cases import STEPS, data, delta, loss
from tests.federated.cases import N as CLIENTS
from tests.federated.quadratics import quick_jit

ALL = np.ones(CLIENTS, bool)
SIZE = sum(np.size(leaf) for leaf in jax.tree.leaves(delta()))
KEY = jax.random.key(3)


@functools.cache
def algorithm():
    return alg.fedavg(gradient_of(loss), optax.sgd(0.05))


def compiled(backend="loop", **parts):
    """``once(present, dropped, key, shard) -> (server, metrics)`` of one program."""
    federation = make_round(algorithm(), backend=backend, **parts)
    server, clients = federation.init(delta(), data())
    round_, steps = quick_jit(federation.round), np.full(CLIENTS, STEPS)

    def once(present=ALL, dropped=~ALL, key=KEY, shard=None):
        shard = data() if shard is None else shard
        moved, _, metrics = round_(server, clients, shard, present, steps, key, dropped)
        return jax.device_get((moved, metrics))

    return once


@functools.cache
def plain():
    return compiled()


@functools.cache
def masked():
    return compiled(secure=grid())


def grid(clients=CLIENTS, threshold=None):
    return fixed_point(clients, threshold or clients // 2 + 1, 4.0, float(data().samples.max()))


def step(server):
    return np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (server.delta, delta())))])


@pytest.mark.parametrize("backend", [pytest.param("loop", marks=pytest.mark.slow), "vmap"])
def test_a_round_is_the_plain_one_whoever_is_absent_or_vanishes(backend):
    present, dropped = ALL.copy(), np.zeros(CLIENTS, bool)
    present[1], dropped[2] = False, True
    secure, metrics = (masked() if backend == "loop" else compiled(backend, secure=grid()))(present, dropped)
    unmasked, expected = plain()(present, dropped)
    np.testing.assert_allclose(step(secure), step(unmasked), atol=3e-6)
    assert abs(step(unmasked)).max() > 1e-3
    assert metrics.participants == expected.participants
    assert metrics.upload_bits == 32 * (SIZE + 1) * expected.participants


def test_below_the_threshold_there_is_no_sum():
    dropped = ~ALL
    dropped[: CLIENTS - CLIENTS // 2] = True  # a half is left, one less than is needed
    server, metrics = masked()(ALL, dropped)
    assert not step(server).any()
    assert not metrics.summed
    assert (metrics.participants, metrics.loss, metrics.dropped) == (0, 0, CLIENTS - CLIENTS // 2)
    assert not metrics.client_loss.any()
    assert metrics.upload_bits == 32 * (SIZE + 1) * (CLIENTS // 2)  # was sent all the same
    dropped[0] = False
    assert step(masked()(ALL, dropped)[0]).any()


def test_without_a_sum_no_client_has_moved():
    """SCAFFOLD: the server's control variate stays the mean of the clients', as it must."""
    secure = fixed_point(CLIENTS, CLIENTS // 2 + 1, 64.0)
    federation = make_round(alg.scaffold(gradient_of(loss), 0.05), backend="loop", secure=secure)
    server, clients = federation.init(delta(), data())
    round_ = quick_jit(federation.round)
    for gone in (CLIENTS // 2, CLIENTS // 2 - 1, CLIENTS // 2 + 1):  # no sum, a sum, no sum
        dropped = np.arange(CLIENTS) < gone
        server, clients, metrics = round_(server, clients, data(), ALL, np.full(CLIENTS, STEPS), KEY, dropped)
        assert bool(metrics.summed) == (gone < CLIENTS // 2)
        for total, each in zip(*map(jax.tree.leaves, (server.state, clients.state)), strict=True):
            np.testing.assert_allclose(total, each.mean(0), atol=1e-5)
    assert any(np.abs(x).max() > 1e-2 for x in jax.tree.leaves(clients.state))


def test_a_client_beyond_the_range_is_left_out_by_name():
    shard = data()
    far = jax.tree.map(lambda x: np.asarray(x).copy(), shard.batches)
    jax.tree.leaves(far)[0][2] *= 1e4
    server, metrics = masked()(shard=shard._replace(batches=far))
    assert metrics.excluded.tolist() == [i == 2 for i in range(CLIENTS)]
    present = ALL.copy()
    present[2] = False
    np.testing.assert_allclose(step(server), step(plain()(present)[0]), atol=3e-6)


def test_central_noise_is_refused():
    """One client more could decide whether a sum is opened, and so move what is released by many clips."""
    privacy = Privacy(1.0, 1.0, CLIENTS)
    for noise in (grid(), distributed_noise(choose(privacy, SIZE, 16), CLIENTS)):
        with pytest.raises(BadFederation, match="add its share of the noise"):
            make_round(algorithm(), privacy=privacy, secure=noise)


@pytest.mark.slow
def test_where_clients_add_noise_one_that_is_not_finite_sends_its_noise():
    """All must answer: were it left out there would be no sum, and its data would show in that."""
    privacy = Privacy(1.0, 1e-3, CLIENTS, neighbours="zero out one")
    once = compiled(secure=distributed_noise(choose(privacy, SIZE, 24), CLIENTS))
    batches = jax.tree.map(lambda x: np.asarray(x).copy(), data().batches)
    jax.tree.leaves(batches)[0][2] = np.nan
    whole, _ = once()
    without, metrics = once(shard=data()._replace(batches=batches))
    assert metrics.excluded.tolist() == [i == 2 for i in range(CLIENTS)]
    assert metrics.participants == CLIENTS - 1
    assert np.isfinite(step(without)).all()
    assert np.linalg.norm(step(without)) > 0.5 * np.linalg.norm(step(whole)) > 0.01


@pytest.mark.slow
def test_noise_of_the_clients_has_the_size_that_was_promised():
    """Fewer answers, less noise: of the mean over the fixed number of clients."""
    privacy = Privacy(1e-6, 1e6, CLIENTS, neighbours="zero out one")
    once = compiled(secure=distributed_noise(choose(privacy, SIZE, 16), CLIENTS // 2 + 1))
    dropped = np.arange(CLIENTS) == 0
    for gone, share in ((~ALL, 1.0), (dropped, 1 - 1 / CLIENTS)):
        steps = [step(once(ALL, gone, jax.random.key(i))[0]) for i in range(12)]
        found = np.concatenate(steps)
        assert found.std() == pytest.approx(np.sqrt(share) / CLIENTS, rel=4 / np.sqrt(2 * found.size))


def test_what_does_not_go_together_is_refused():
    stack = algorithm()._replace(reduction="stack")
    with pytest.raises(BadFederation, match="looks at every upload"):
        make_round(stack, secure=grid()).init(delta(), data())
    counts = alg.fednova(gradient_of(loss), 0.05)
    with pytest.raises(BadFederation, match="averages more than updates"):
        make_round(counts, secure=grid()).init(delta(), data())
