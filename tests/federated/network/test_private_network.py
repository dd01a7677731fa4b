"""Noise over a network: sites and server make their own, and nobody holds the key of what another one added."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Privacy, Shard
from medvfm_jax.federated.network.agreement import Agreement, contract
from medvfm_jax.federated.network.messages import decode
from medvfm_jax.federated.network.session import Patience, run_session
from medvfm_jax.federated.network.site import Site, make_site, noise_secret
from medvfm_jax.federated.privacy.client_level import noisy_mean
from medvfm_jax.federated.privacy.patient_level import PatientBatch, patient_value_and_grad
from medvfm_jax.federated.rounds.federation import _NOISE
from tests.federated.network.loopback import KEY, NODES, SITES, Loopback

D = 400
QUICK = Patience(answer=1, joining=0.05, greeting=1, pause=0.01, tries=2)
DELTA = {"w": jnp.zeros(D)}
CLIENT = Privacy(0.5, 1.0, 3.0)
PATIENT = Privacy(0.5, 1.0, 2.0, unit="patient")


def loss(delta, target, key):
    del key
    return 0.5 * jnp.sum(jnp.square(delta["w"] - target))


def plain_agreement() -> Agreement:
    return Agreement(
        alg.fedavg(gradient_of(loss), optax.sgd(1.0)), DELTA, Shard(jnp.ones((1, D)), jnp.float32(4))
    )


def patient_agreement() -> Agreement:
    """One step of DP-SGD on two patients of a slice each, whose gradients are zero: an update is noise alone."""
    algorithm = alg.fedavg(patient_value_and_grad(loss, PATIENT), optax.sgd(1.0))
    batches = PatientBatch(jnp.zeros((1, 2, 1, D)), jnp.ones((1, 2, 1), bool))
    return Agreement(algorithm, DELTA, Shard(batches, jnp.float32(4)))


def shards(row: int, round_: int) -> tuple[Shard, int]:
    return Shard(jnp.full((1, D), 0.01), jnp.float32(4)), 1


def length(x) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64)))


@pytest.fixture(scope="module")
def noisy_site(tmp_path_factory):
    """-> (request of a round, answer(folder, request) -> update (D,), the message)."""
    agreement = patient_agreement()
    shapes = contract(agreement)
    assert shapes.noisy
    assert not contract(plain_agreement()).noisy
    network = Loopback(agreement, tmp_path_factory.mktemp("network"))
    progress = network.coordinator.begin(KEY)

    def ask(progress):
        return network.coordinator.ask(progress, {"north": NODES["north"]}).messages[NODES["north"]]

    answers = {}

    def answer(folder: Path, request: bytes) -> np.ndarray:
        if folder not in answers:
            answers[folder] = make_site(Site(agreement, "north", lambda r: (agreement.example, 1), folder))
        reply = decode(answers[folder](NODES["north"], request), 10**6)
        assert reply.header.kind == "done", reply.header.reason
        message, rest = reply.payload[: 4 * D], np.frombuffer(reply.payload[4 * D :], np.float32)
        assert rest.tolist() == [4.0, 0.0]  # the weight, which is public, and not the loss
        return np.frombuffer(message, np.float32)

    moved = progress._replace(server=progress.server._replace(delta={"w": progress.server.delta["w"] + 1e-3}))
    return ask(progress), ask(moved), answer


def test_a_site_never_uses_the_servers_key_for_its_noise(noisy_site, tmp_path):
    request, _, answer = noisy_site
    update = answer(tmp_path / "site", request)
    deviation = PATIENT.clip / PATIENT.expected_clients
    assert length(update) == pytest.approx(deviation * np.sqrt(D), rel=0.15)

    def noise(data):
        """As the work derives it from its key: training, step, noise."""
        key = jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")
        training = jax.random.split(key)[0]
        guess = jax.random.split(jax.random.fold_in(training, 0))[1]
        return noisy_mean(DELTA, PATIENT.clip, PATIENT, guess)["w"]

    message = decode(request, 10**6)
    sent = np.frombuffer(message.payload[-8:], np.uint32)
    assert length(update + noise(sent)) > 1.2 * length(update)  # a wrong guess adds as much again
    question = hashlib.sha256(message.payload).hexdigest()
    own = noise_secret(tmp_path / "site").key("work", message.header.run, 0, 0, question)
    assert length(update + noise(jax.random.key_data(own))) < 1e-5 * length(update)  # the attack works
    assert length(answer(tmp_path / "another", request) - update) > 1.2 * length(update)


def test_a_question_asked_again_has_the_same_answer_and_another_delta_none(noisy_site, tmp_path):
    """Otherwise the mean of many answers to one round would show what the noise hides."""
    request, moved, answer = noisy_site
    update = answer(tmp_path / "site", request)
    np.testing.assert_array_equal(answer(tmp_path / "site", request), update)
    with pytest.raises(AssertionError, match="spent"):
        answer(tmp_path / "site", moved)
    np.testing.assert_array_equal(answer(tmp_path / "site", request), update)
    assert length(answer(tmp_path / "other", moved) - update) > 1.2 * length(update)
    secret = tmp_path / "site" / "noise.secret"
    assert secret.stat().st_mode & 0o077 == 0
    assert noise_secret(tmp_path / "site").data == secret.read_bytes()
    for path in (tmp_path / "site").iterdir():
        assert path == secret or secret.read_bytes() not in path.read_bytes()


def test_the_servers_noise_is_its_own_and_follows_from_nothing_it_sends(tmp_path):
    """Same key of the run, other noise; the key of the run is that of every site's message."""
    network = Loopback(plain_agreement(), tmp_path, shards, privacy=CLIENT)
    first, second = (network.coordinator.begin(KEY) for _ in range(2))
    requests = [network.coordinator.ask(p, NODES).messages for p in (first, second._replace(run=first.run))]
    assert requests[0] == requests[1]
    ends = [network.round(progress)[0] for progress in (first, second)]
    released = [np.asarray(end.server.delta["w"]) for end in ends]
    assert length(released[0] - released[1]) > 1.2 * length(released[0])

    def noise(data):
        key = jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, 0), _NOISE)
        return np.asarray(noisy_mean(DELTA, CLIENT.clip, CLIENT, key)["w"])

    assert length(released[0] - noise(first.key)) > 1.2 * length(released[0])
    assert (
        length(released[0] - noise(first.noise)) <= CLIENT.clip * 1.001
    )  # the attack works with the right key


def test_a_private_session_tells_little_and_forgets_its_key(tmp_path):
    network = Loopback(plain_agreement(), tmp_path / "sites", shards, privacy=CLIENT)
    saved, save = [], network.coordinator.save

    def watched(folder, progress):
        save(folder, progress)
        saved.append(np.asarray(progress.noise).tobytes())

    coordinator = network.coordinator._replace(save=watched)
    transport = network.transport()
    run_session(coordinator, transport, 2, tmp_path / "run", None, QUICK)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"round": 0, "attempt": 0}, {"round": 1, "attempt": 0}]
    assert len(set(saved)) == 1  # one secret for the whole run, kept in its checkpoints
    assert [path.name for path in (tmp_path / "run").glob("*.server")] == ["round_000002.server"]
    for path in (tmp_path / "run").iterdir():
        assert saved[0] not in path.read_bytes()
    assert next((tmp_path / "run").glob("*.server")).stat().st_mode & 0o077 == 0
    more = run_session(coordinator, transport, 3, tmp_path / "run", None, QUICK)
    assert int(more.server.round) == 3


def test_noise_is_released_also_when_nobody_answers(tmp_path):
    """A round without noise would tell that everybody was missing."""
    network = Loopback(plain_agreement(), tmp_path, shards, privacy=CLIENT, fewest=2)
    after, record = network.round(network.coordinator.begin(KEY), lambda site, reply: None)
    assert set(record.missing) == set(SITES)
    moved = length(after.server.delta["w"])
    assert moved == pytest.approx(CLIENT.clip / 3 * np.sqrt(D), rel=0.15)
    plain = Loopback(plain_agreement(), tmp_path / "plain", shards, fewest=2)
    after, record = plain.round(plain.coordinator.begin(KEY), lambda site, reply: None)
    assert record.metrics is None


def test_a_site_answers_as_many_rounds_as_its_noise_was_accounted_for(tmp_path):
    agreement = patient_agreement()
    network = Loopback(agreement, tmp_path / "network")
    site = make_site(
        Site(agreement, "north", lambda r: (agreement.example, 1), tmp_path / "site", noisy_answers=2)
    )

    def asked(run: int, round_: int) -> str:
        progress = progresses[run]
        progress = progress._replace(server=progress.server._replace(round=jnp.int32(round_)))
        request = network.coordinator.ask(progress, {"north": NODES["north"]}).messages[NODES["north"]]
        header = decode(site(NODES["north"], request), 10**6).header
        return header.reason or header.kind

    progresses = [network.coordinator.begin(KEY) for _ in range(2)]
    assert [asked(0, 0), asked(0, 0), asked(1, 0), asked(1, 0)] == ["done"] * 4
    assert [asked(0, 1), asked(1, 1)] == ["spent", "spent"]  # a run more buys no answer more
    written = tmp_path / "site" / "answered.json"
    assert json.loads(written.read_text())["answered"] == 2
    assert written.stat().st_mode & 0o077 == 0
    written.write_text("{}")
    assert asked(0, 0) == "error"
