"""What goes wrong between hospitals: nothing of it stops a run, every site is named, and good sites lose nothing."""

import logging
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated import codecs
from medvfm_jax.federated.codecs.feedback import ef21
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Privacy
from medvfm_jax.federated.network.agreement import contract
from medvfm_jax.federated.network.coordinator import Progress, make_coordinator
from medvfm_jax.federated.network.messages import BadMessage, decode, encode
from medvfm_jax.federated.network.site import Site, make_site
from medvfm_jax.types import MedvfmError
from tests.federated.cases import SGD, STEPS, data, loss
from tests.federated.network.loopback import (
    KEY,
    NODES,
    SITES,
    Loopback,
    agreement,
    rows,
    scaffold_agreement,
    simulate,
)

LIMIT = 10**6
SCAFFOLD = scaffold_agreement()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Loopback:
    """SCAFFOLD with error feedback: both keep state at the site.  Tests start runs of their own."""
    return Loopback(SCAFFOLD, tmp_path_factory.mktemp("sites"), largest_weight=50.0)


@pytest.fixture
def start(network: Loopback) -> Progress:
    return network.coordinator.begin(KEY)


@pytest.fixture(scope="module")
def without_east() -> object:
    return simulate(SCAFFOLD, None, [[True, False, True]])[0]


def change(field: str, value: object) -> Callable[[bytes], bytes]:
    """A reply that says something else, correctly framed."""

    def tamper(reply: bytes) -> bytes:
        header, payload = decode(reply, LIMIT)
        return encode(header._replace(**{field: value}), payload)

    return tamper


def poison(reply: bytes) -> bytes:
    header, payload = decode(reply, LIMIT)
    return encode(header, b"\xff" * len(payload))


def renamed(reply: bytes) -> bytes:
    header, payload = decode(reply, LIMIT)
    (_, *what), *rest = header.layout
    return encode(header._replace(layout=[["other", *what], *rest]), payload)


def reshaped(reply: bytes) -> bytes:
    """A declared shape of 4 * 10**18 bytes over the payload that really came."""
    header, payload = decode(reply, LIMIT)
    (name, kind, _), *rest = header.layout
    return encode(header._replace(layout=[[name, kind, [10**9, 10**9]], *rest]), payload)


def resized(by: int) -> Callable[[bytes], bytes]:
    def tamper(reply: bytes) -> bytes:
        header, payload = decode(reply, LIMIT)
        return encode(header, payload[:by] if by < 0 else payload + bytes(by))

    return tamper


BAD_ANSWERS: dict[str, tuple[Callable[[bytes], bytes | str | None], str]] = {
    "random bytes": (lambda reply: b"\x80\x04" * 100, "not a message of this package"),
    "cut": (lambda reply: reply[:-1], "cut or lengthened"),
    "one bit": (lambda reply: reply[:-40] + bytes([reply[-40] ^ 1]) + reply[-39:], "damaged"),
    "huge": (lambda reply: bytes(2**21), "refused unread"),
    "not finite": (poison, "not finite"),
    "another round": (change("round", 7), "late or was replayed"),
    "another run": (change("run", "ab" * 16), "another run"),
    "another federation": (change("federation", "ab" * 32), "another federation"),
    "another node": (change("node", 1), "names node 1"),
    "another site": (change("site", "north"), "names site 'north'"),
    "another client": (change("client", 0), "names client 0"),
    "a request": (change("kind", "work"), "kind 'work'"),
    "other names": (renamed, "holds 'other'"),
    "another shape": (reshaped, "of shape [1000000000, 1000000000], expected"),
    "payload too short": (resized(-4), "bytes where"),
    "payload too long": (resized(4), "and 72 are read"),
    "transport": (lambda reply: "The node was disconnected.", "disconnected"),
    "failure of unknown kind": (change("kind", "failed"), "unknown reason"),
    "silence": (lambda reply: None, ""),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_one_bad_answer_is_left_out_and_named(
    name: str, network: Loopback, start: Progress, without_east: object
) -> None:
    """The round is the one without that site, bit by bit of what the others sent."""
    tamper, words = BAD_ANSWERS[name]
    after, record = network.round(start, lambda site, reply: tamper(reply) if site == "east" else reply)
    chex.assert_trees_all_close(after.server, without_east, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.accepted, [0, -1, 0])
    assert record.arrived == ("north", "south")
    if words:
        assert list(record.refused) == ["east"]
        assert words in record.refused["east"]
    else:
        assert record.missing == ("east",)


def test_answers_of_the_round_before_are_refused(network: Loopback, start: Progress) -> None:
    """Replayed by the network: the whole second round consists of answers to the first."""
    kept: dict[str, bytes] = {}

    def record_all(site: str, reply: bytes) -> bytes:
        return kept.setdefault(site, reply)

    progress, _ = network.round(start, record_all)
    after, record = network.round(progress, record_all)
    assert after is progress
    assert record.metrics is None
    assert record.refused.keys() == set(SITES)
    assert all("late or was replayed" in sentence for sentence in record.refused.values())


def test_a_replayed_request_is_refused_by_the_site(network: Loopback, start: Progress) -> None:
    requests = []
    progress = start
    for _ in range(3):
        request = network.coordinator.ask(progress, {"north": NODES["north"]})
        requests.append(request.messages[NODES["north"]])
        progress, record = network.coordinator.finish(progress, request, network.deliver(request.messages))
        assert record.arrived == ("north",)
    for old in requests[:2]:
        header = decode(network.answers[NODES["north"]](NODES["north"], old), 0).header
        assert (header.kind, header.reason) in {("failed", "message"), ("failed", "state")}
    # It did not disturb the site's state.
    _, record = network.round(progress, sites=("north",))
    assert record.arrived == ("north",)


def test_a_request_asked_twice_is_answered_twice_with_the_same_bytes(
    network: Loopback, start: Progress
) -> None:
    request = network.coordinator.ask(start, NODES)
    assert network.deliver(request.messages) == network.deliver(request.messages)


def test_a_weight_that_is_claimed_is_bounded(tmp_path: Path) -> None:
    heavy = Loopback(SCAFFOLD._replace(algorithm=_with_weight(1e9)), tmp_path, largest_weight=50.0)
    _, record = heavy.round(heavy.coordinator.begin(KEY))
    assert set(record.refused) == set(SITES)
    assert "claims the weight 1e+09" in record.refused["north"]


def test_without_a_word_nobody_is_believed() -> None:
    """Neither how much a site counts nor who speaks for it is left to whoever says so."""
    fedavg = agreement(alg.fedavg(gradient_of(loss), SGD))
    with pytest.raises(BadFederation, match="The largest weight of a site is not set"):
        make_coordinator(fedavg, SITES, nodes=NODES)
    for kwargs in ({}, {"nodes": "anybody"}):
        with pytest.raises(BadFederation, match="Nodes are not assigned to sites"):
            make_coordinator(SCAFFOLD, SITES, **kwargs)
    for nodes, words in (
        ({"north": 1, "east": 2}, "no node is given for 'south'"),
        ({"north": 1, "east": 2, "south": 2}, "two sites have the same node"),
    ):
        with pytest.raises(BadFederation, match=words):
            make_coordinator(SCAFFOLD, SITES, nodes=nodes)
    for weight in (0.0, -1.0, np.nan):
        with pytest.raises(BadFederation, match="expected a positive number"):
            make_coordinator(SCAFFOLD, SITES, largest_weight=weight, nodes=NODES)
        with pytest.raises(BadFederation, match=r"'east' declared .* expected a positive number"):
            make_coordinator(fedavg, {"north": 5, "east": weight, "south": 5}, nodes=NODES)


@pytest.mark.parametrize("name", ["../north", "a b", "", "x" * 65, "ünder"])
def test_a_name_that_cannot_be_sent_is_refused_on_both_sides(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadFederation, match="cannot be named"):
        make_coordinator(SCAFFOLD, [name, "east"], nodes={name: 1, "east": 2})
    with pytest.raises(BadFederation, match="cannot be named"):
        make_site(Site(SCAFFOLD, name, lambda r: (rows(data(), 0), STEPS), tmp_path))


def test_a_site_counts_for_what_it_declared_and_no_more(tmp_path: Path) -> None:
    """FedAvg weighs by samples: east sends one more than it declared, the others what they did."""
    counts = {site: float(rows(data(), row).samples) for row, site in enumerate(SITES)}
    network = Loopback(agreement(alg.fedavg(gradient_of(loss), SGD)), tmp_path)
    declared = counts | {"east": counts["east"] - 1}
    network.coordinator = make_coordinator(network.agreement, declared, nodes=NODES)
    _, record = network.round(network.coordinator.begin(KEY))
    assert record.arrived == ("north", "south")
    assert (
        f"claims the weight {counts['east']:g}; 0 to {counts['east'] - 1:g} is possible"
        in record.refused["east"]
    )


def test_where_all_sites_count_alike_none_can_count_more(tmp_path: Path) -> None:
    """SCAFFOLD gives everybody the weight 1: nothing is declared, and 1.5 is refused."""
    heavy = Loopback(SCAFFOLD._replace(algorithm=_with_weight(1.5)), tmp_path)
    heavy.coordinator = make_coordinator(SCAFFOLD, SITES, nodes=NODES)
    _, record = heavy.round(heavy.coordinator.begin(KEY))
    assert set(record.refused) == set(SITES)
    assert "claims the weight 1.5; 0 to 1 is possible" in record.refused["north"]


def _with_weight(weight: float) -> Algorithm:
    base = SCAFFOLD.algorithm

    def client_update(*args: object) -> tuple:
        state, report = base.client_update(*args)
        return state, report._replace(weight=jnp.full_like(report.weight, weight))

    return base._replace(client_update=client_update)


def test_a_site_of_another_federation_refuses(network: Loopback, start: Progress, tmp_path: Path) -> None:
    changed = SCAFFOLD._replace(settings={"rate": 2})
    other = make_site(Site(changed, "east", lambda r: (rows(data(), 1), STEPS), tmp_path))
    request = network.coordinator.ask(start, NODES)
    reply = other(NODES["east"], request.messages[NODES["east"]])
    assert decode(reply, 0).header.reason == "message"
    assert contract(SCAFFOLD).federation != contract(changed).federation
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (np.inf, 1e30))])
def test_a_site_whose_update_is_not_finite_says_so_and_keeps_its_state(bad: float, tmp_path: Path) -> None:
    def shards(row: int, round_: int) -> tuple:
        shard = rows(data(), row)
        if row == 1 and round_ == 0:
            shard = shard._replace(batches=jax.tree.map(lambda x: x.at[0].set(bad), shard.batches))
        return shard, STEPS

    network = Loopback(SCAFFOLD, tmp_path, shards)
    progress, record = network.round(network.coordinator.begin(KEY))
    assert "not finite" in record.refused["east"]
    progress, record = network.round(progress)
    assert record.arrived == SITES
    server, _ = simulate(SCAFFOLD, None, [[True, False, True], [True] * 3])
    chex.assert_trees_all_close(progress.server, server, rtol=1e-5, atol=1e-6)


def test_what_fails_at_a_site_stays_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the patient's file, the message does not."""
    secret = "/data/patient_4711/scan.nii.gz"
    errors = iter([MedvfmError(f"{secret} is damaged."), RuntimeError(secret), None])

    def shards(row: int, round_: int) -> tuple:
        error = next(errors) if row == 0 else None
        if error is not None:
            raise error
        return rows(data(), row), 0 if row == 0 else STEPS

    network = Loopback(SCAFFOLD, tmp_path, shards)
    progress = network.coordinator.begin(KEY)
    caplog.set_level(logging.INFO)
    for words in ("local work failed", "local work failed", "no data for this round"):
        request = network.coordinator.ask(progress, NODES)
        replies = network.deliver(request.messages)
        assert b"4711" not in replies[NODES["north"]]
        progress, record = network.coordinator.finish(progress, request, replies)
        assert words in record.refused["north"]
    assert caplog.text.count(secret) >= 2


@pytest.mark.slow
def test_a_lost_or_foreign_state_is_noticed(tmp_path: Path) -> None:
    network = Loopback(SCAFFOLD, tmp_path)
    progress, _ = network.round(network.coordinator.begin(KEY))
    (state,) = (tmp_path / "east").iterdir()
    good = state.read_bytes()
    (other,) = (tmp_path / "north").iterdir()
    for damage in (other.read_bytes(), good[:-1], b"", bytes(2**21)):
        state.write_bytes(damage)
        _, record = network.round(progress)
        assert "does not hold the state" in record.refused["east"]
        assert state.read_bytes() == damage
    state.unlink()
    _, record = network.round(progress)
    assert "does not hold the state" in record.refused["east"]
    state.write_bytes(good)
    _, record = network.round(progress)
    assert record.arrived == SITES


def test_a_site_without_state_may_lose_its_file(tmp_path: Path) -> None:
    network = Loopback(agreement(alg.fedavg(gradient_of(loss), SGD)), tmp_path)
    progress, _ = network.round(network.coordinator.begin(KEY))
    for file in (tmp_path / "east").iterdir():
        file.unlink()
    assert network.round(progress)[1].arrived == SITES


@pytest.mark.slow
def test_a_round_asked_again_rolls_the_site_back(tmp_path: Path) -> None:
    """The server dies after the answers came and before its checkpoint: the same numbers come out."""
    network = Loopback(SCAFFOLD, tmp_path)
    first, _ = network.round(network.coordinator.begin(KEY))
    once, _ = network.round(first)
    again, _ = network.round(first)
    chex.assert_trees_all_equal(once.server, again.server)
    server, _ = simulate(SCAFFOLD, None, [[True] * 3] * 3)
    chex.assert_trees_all_close(network.round(again)[0].server, server, rtol=1e-5, atol=1e-6)


def test_too_few_answers_change_nothing(tmp_path: Path) -> None:
    network = Loopback(SCAFFOLD, tmp_path, fewest=2)
    progress = network.coordinator.begin(KEY)
    after, record = network.round(progress, lambda site, reply: reply if site == "north" else None)
    assert after is progress
    assert record.metrics is None
    assert record.missing == ("east", "south")


def test_bytes_are_those_of_whole_messages(network: Loopback, start: Progress) -> None:
    request = network.coordinator.ask(start, NODES)
    replies = network.deliver(request.messages)
    _, record = network.coordinator.finish(start, request, replies)
    assert record.download_bytes == sum(map(len, request.messages.values()))
    assert record.upload_bytes == sum(map(len, replies.values()))
    assert record.upload_bytes > float(record.metrics.upload_bits) / 8


def test_a_site_receives_what_its_work_reads_and_no_more(start: Progress) -> None:
    """Moments of the server's optimizer stay there, SCAFFOLD's control variate and a frozen factor go out."""
    assert all(
        name.startswith("delta/")
        for name in contract(agreement(alg.fedadam(gradient_of(loss), SGD))).download.server
    )
    assert any(name.startswith("state/") for name in contract(SCAFFOLD).download.server)
    assert any(
        "frozen" in name for name in contract(agreement(alg.ffa_lora(gradient_of(loss), SGD))).download.server
    )


def test_the_key_of_the_run_is_not_sent(network: Loopback, start: Progress) -> None:
    request = network.coordinator.ask(start, NODES)
    assert all(start.key.tobytes() not in message for message in request.messages.values())
    assert len({message[-40:-32] for message in request.messages.values()}) == len(SITES)


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(BadFederation, match="name of its own"):
        make_coordinator(SCAFFOLD, ["a", "a"])
    with pytest.raises(BadFederation, match="fewest is 4"):
        make_coordinator(SCAFFOLD, SITES, fewest=4, nodes=NODES)
    with pytest.raises(BadFederation, match="error_feedback"):
        contract(SCAFFOLD._replace(codec=ef21(codecs.top_k(0.5))))
    with pytest.raises(BadFederation, match="noise on their"):
        make_coordinator(
            agreement(alg.lora_fair(gradient_of(loss), SGD)), SITES, Privacy(1.0, 1.0, 3.0), 1, 50.0, NODES
        )
    with pytest.raises(BadFederation, match="threefry2x32"):
        make_coordinator(SCAFFOLD, SITES, nodes=NODES).begin(jax.random.key(0, impl="rbg"))


def test_a_hello_is_answered_with_the_name(network: Loopback, start: Progress) -> None:
    reply = network.answers[NODES["east"]](NODES["east"], network.coordinator.hello(start, NODES["east"]))
    assert network.coordinator.admit(start, NODES["east"], reply) == "east"
    with pytest.raises(BadMessage, match="names node"):
        network.coordinator.admit(start, NODES["north"], reply)
    stranger = encode(decode(reply, 0).header._replace(site="elsewhere"))
    with pytest.raises(BadMessage, match="not on the list"):
        network.coordinator.admit(start, NODES["east"], stranger)


def test_a_site_cannot_speak_for_another_one_if_nodes_are_given(tmp_path: Path) -> None:
    network = Loopback(SCAFFOLD, tmp_path, nodes=NODES)
    start = network.coordinator.begin(KEY)
    hello = network.coordinator.hello(start, NODES["east"])
    reply = network.answers[NODES["east"]](NODES["east"], hello)
    assert network.coordinator.admit(start, NODES["east"], reply) == "east"
    as_north = encode(decode(reply, 0).header._replace(site="north"))
    with pytest.raises(BadMessage, match="says it is north, whose key is that of another node"):
        network.coordinator.admit(start, NODES["east"], as_north)
