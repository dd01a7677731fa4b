"""What a whole round, not only its parts, lets one client change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import AdaptiveClip, Privacy, Shard
from medvfm_jax.federated.privacy.canary_audit import canary_scores, epsilon_lower_bound
from medvfm_jax.federated.privacy.gaussian import gaussian_epsilon
from medvfm_jax.federated.privacy.patient_level import PatientBatch, patient_value_and_grad
from medvfm_jax.federated.rounds.federation import make_round
from tests.federated.quadratics import quick_jit

N, D = 5, 6
DELTA = {"w": jnp.zeros(D)}


def loss(delta, target, key):
    del key
    return 0.5 * jnp.sum(jnp.square(delta["w"] - target))


def shard(lengths):
    """One step per client on a target of its own, at the stated distance."""
    directions = np.random.default_rng(0).normal(size=(N, 1, D))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Shard(jnp.asarray(directions * np.reshape(lengths, (N, 1, 1)), jnp.float32), jnp.ones(N))


def compiled(privacy):
    federation = make_round(fedavg(gradient_of(loss), optax.sgd(1.0)), privacy=privacy)
    step = jax.jit(federation.round)

    def run(data, present, key):
        server, clients = federation.init(DELTA, data)
        return step(server, clients, data, jnp.asarray(present, bool), jnp.ones(N, jnp.int32), key)[0]

    return run


def test_one_client_moves_the_adaptive_bound_by_half_a_vote():
    """log C moves by η (½ ± ...) / m: with the noise fixed by the key, half a client of the count, in or out."""
    privacy = Privacy(1.0, 0.0, 4.0, adapt=AdaptiveClip(quantile=0.5, rate=0.2, bit_noise=3.0))
    run = compiled(privacy)
    data = shard([0.5, 2.0, 0.7, 3.0, 0.9])
    everybody = run(data, [1, 1, 1, 1, 1], jax.random.key(0)).clip
    for client, sign in ((0, 1), (1, -1), (3, -1)):
        without = run(data, np.arange(N) != client, jax.random.key(0)).clip
        moved = float(jnp.log(without) - jnp.log(everybody))
        assert moved == pytest.approx(sign * 0.2 * 0.5 / 4.0, rel=1e-3)


def test_an_audit_of_the_round_stays_below_what_its_noise_promises():
    privacy = Privacy(0.5, 1.0, 4.0)
    run = compiled(privacy)

    def release(key, update):
        """The last client's work is the canary: one step of size 1 takes it to its target."""
        data = shard([2.0] * N)
        data = data._replace(batches=data.batches.at[-1, 0].set(3 * update["w"]))
        present = jnp.arange(N) < N - jnp.where(jnp.any(update["w"] != 0), 0, 1)
        return {"w": run(data, present, key).delta["w"] * privacy.expected_clients}

    canary = {"w": jnp.full(D, privacy.clip / np.sqrt(D))}
    present, absent = jax.jit(lambda key: canary_scores(release, canary, 3000, key, batch=500))(
        jax.random.key(1)
    )
    assert np.mean(present) - np.mean(absent) == pytest.approx(
        1.0, abs=0.1
    )  # the clip binds: 3 clips became 1
    audit = epsilon_lower_bound(present, absent, 1e-5)
    assert 0.8 < audit.epsilon < gaussian_epsilon(1e-5, 1.0)


def test_the_share_of_clipped_clients_is_measured():
    federation = make_round(fedavg(gradient_of(loss), optax.sgd(1.0)), privacy=Privacy(1.0, 1.0, 4.0))
    data = shard([0.5, 2.0, 0.7, 3.0, 9.0])  # an update is as long as its target is far
    step = quick_jit(federation.round)
    server, clients = federation.init(DELTA, data)
    for present, share in (([1, 1, 1, 1, 0], 0.5), ([1, 1, 1, 1, 1], 0.6), ([0] * 5, 0.0)):
        steps = jnp.ones(N, jnp.int32)
        *_, metrics = step(server, clients, data, jnp.asarray(present, bool), steps, jax.random.key(0))
        assert float(metrics.extra["clipped"]) == pytest.approx(share)


def test_clipped_patients_are_counted_and_a_broken_one_does_not_stop_its_hospital():
    """Gradients at 0 are minus the mean of a patient's slices; one patient's image is not finite."""
    patient = Privacy(1.0, 1e-9, 2.0, unit="patient")
    algorithm = fedavg(patient_value_and_grad(loss, patient), optax.sgd(1.0))
    lengths = np.array([[[0.5, 2.0, 3.0]], [[0.2, 0.3, np.nan]]])  # clients, steps, patients
    slices = jnp.asarray(lengths[..., None, None] * np.eye(D)[0], jnp.float32)
    mask = jnp.ones((2, 1, 3, 1), bool).at[0, 0, 2].set(False)
    data = Shard(PatientBatch(slices, mask), jnp.ones(2))
    federation = make_round(algorithm, backend="loop")
    server, clients = federation.init(DELTA, data)
    after, _, metrics = quick_jit(federation.round)(
        server, clients, data, jnp.ones(2, bool), jnp.ones(2, jnp.int32), jax.random.key(0)
    )
    # Of 2 + 3 patients those at 2.0 and at NaN are clipped; means are over clients.
    assert metrics.extra["patients"] == 2.5
    assert metrics.extra["clipped_patients"] == 1.0
    assert not metrics.excluded.any()
    moved = ((0.5 + 1.0) / 2 + (0.2 + 0.3) / 2) / 2
    np.testing.assert_allclose(after.delta["w"], moved * np.eye(D)[0], atol=1e-6)


def test_patients_are_protected_inside_a_federated_client():
    """DP-SGD as the local step of a round: without noise one patient moves a client by at most lr C / m per step."""
    patient = Privacy(0.1, 0.0, 3.0, unit="patient")
    value_and_grad = patient_value_and_grad(loss, patient)
    targets = np.random.default_rng(1).normal(size=(4, 3, D)).astype(np.float32)
    mask = np.ones((4, 3), bool)

    @jax.jit
    def local(mask):
        _, gradient = value_and_grad(DELTA, PatientBatch(targets, mask), jax.random.key(0))
        return optax.apply_updates(DELTA, jax.tree.map(lambda g: -0.7 * g, gradient))["w"]

    for p in range(4):
        moved = np.linalg.norm(local(mask) - local(mask & (np.arange(4) != p)[:, None]))
        assert moved == pytest.approx(0.7 * 0.1 / 3.0, rel=1e-4)
