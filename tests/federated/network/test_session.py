"""A whole run: sites come late, vanish and come back; the server dies and goes on with the same numbers."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import chex
import jax
import pytest

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.network.coordinator import make_coordinator
from medvfm_jax.federated.network.messages import BadMessage, decode
from medvfm_jax.federated.network.session import Patience, Transport, run_session
from tests.federated.cases import SGD, loss
from tests.federated.network.loopback import (
    KEY,
    NODES,
    SITES,
    Loopback,
    agreement,
    scaffold_agreement,
    simulate,
)

SCAFFOLD = scaffold_agreement()
QUICK = Patience(answer=1, joining=0.05, greeting=1, pause=0.01, tries=2)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Loopback:
    return Loopback(SCAFFOLD, tmp_path_factory.mktemp("sites"))


class Crash(Exception):
    pass


def kind_of(message: bytes) -> str:
    return decode(message, 10**6).header.kind


def crash_after(transport: Transport, rounds: int, answered: bool) -> Transport:
    """The server's process ends when it has asked for round ``rounds``, before or after the answers."""

    def exchange(messages: Mapping[int, bytes], seconds: float) -> Mapping[int, bytes | str]:
        nonlocal rounds
        rounds -= any(kind_of(message) == "work" for message in messages.values())
        if rounds < 0 and not answered:
            raise Crash
        replies = transport.exchange(messages, seconds)
        if rounds < 0:
            raise Crash
        return replies

    return transport._replace(exchange=exchange)


@pytest.mark.parametrize("answered", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_and_resumed_is_never_killed(answered: bool, network: Loopback, tmp_path: Path) -> None:
    """Same bits, whether the answers of the broken round had come or not; the key is that of the first start."""
    whole = run_session(network.coordinator, network.transport(), 3, tmp_path / "whole", KEY, QUICK)
    with pytest.raises(Crash):
        run_session(
            network.coordinator,
            crash_after(network.transport(), 1, answered),
            3,
            tmp_path / "run",
            KEY,
            QUICK,
        )
    assert int(network.coordinator.restore(tmp_path / "run").server.round) == 1
    resumed = run_session(
        network.coordinator, network.transport(), 3, tmp_path / "run", jax.random.key(99), QUICK
    )
    chex.assert_trees_all_equal(resumed.server, whole.server)
    server, _ = simulate(SCAFFOLD, None, [[True] * 3] * 3)
    chex.assert_trees_all_close(whole.server, server, rtol=1e-5, atol=1e-6)


def test_every_round_is_a_line_and_two_checkpoints_are_kept(network: Loopback, tmp_path: Path) -> None:
    run_session(network.coordinator, network.transport(), 3, tmp_path, KEY, QUICK)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert lines[-1]["arrived"] == list(SITES)
    assert lines[0]["upload_bytes"] > 0 < lines[0]["download_bytes"]
    assert sorted(p.name for p in tmp_path.glob("*.server")) == ["round_000002.server", "round_000003.server"]


def test_a_site_that_comes_late_joins_and_one_that_leaves_is_missed(
    network: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    present = iter([["north"], ["north", "east", "south"], ["south", "east"]])
    transport = network.transport()._replace(nodes=lambda: [NODES[site] for site in next(present)])
    progress = run_session(network.coordinator, transport, 3, tmp_path, KEY, QUICK)
    assert progress.accepted.tolist() == [1, 2, 2]
    assert "east has joined as node 1007" in caplog.text
    assert "north is not connected any more" in caplog.text


def test_two_nodes_of_one_name(network: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second is not admitted as long as the first is connected."""
    twin = 5
    answers = network.answers | {twin: network.answers[NODES["east"]]}

    def exchange(messages: Mapping[int, bytes], seconds: float) -> Mapping[int, bytes]:
        return {node: answers[node](node, request) for node, request in messages.items()}

    believing = make_coordinator(network.agreement, SITES, nodes="first_come")
    run_session(believing, Transport(lambda: [NODES["east"], twin], exchange), 1, tmp_path, KEY, QUICK)
    assert "another connected node said so before" in caplog.text


def test_nobody_comes(network: Loopback, tmp_path: Path) -> None:
    empty = network.transport()._replace(nodes=lambda: [])
    with pytest.raises(BadFederation, match=r"0 of at least 2 sites .* absent: east, north, south"):
        run_session(network.coordinator, empty, 1, tmp_path, KEY, QUICK, fewest=2)


def test_a_node_that_is_not_admitted_is_asked_again_only_later(network: Loopback, tmp_path: Path) -> None:
    """Every question starts a process at the hospital.  Once it was away and is back, it is asked at once."""
    asked = []

    def exchange(messages: Mapping[int, bytes], seconds: float) -> Mapping[int, bytes | str]:
        asked.append(sorted(messages))
        return dict.fromkeys(messages, "It has another program.")

    stranger = 5
    looks = iter([[stranger], [stranger], [stranger], [], [stranger]])
    transport = Transport(lambda: next(looks, [stranger]), exchange)
    patience = QUICK._replace(joining=0.5, pause=0.01, again=60.0)
    with pytest.raises(BadFederation, match="0 of at least 1 sites"):
        run_session(network.coordinator, transport, 1, tmp_path / "later", KEY, patience)
    assert asked == [[stranger], [stranger]]
    soon = Transport(lambda: [stranger], exchange)
    with pytest.raises(BadFederation):
        run_session(network.coordinator, soon, 1, tmp_path / "soon", KEY, patience._replace(again=0.0))
    assert len(asked) > 4


def test_nobody_answers(network: Loopback, tmp_path: Path) -> None:
    def lose_work(site: str, reply: bytes) -> bytes | None:
        return reply if kind_of(reply) == "here" else None

    with pytest.raises(
        BadFederation, match="Round 0 had too few usable answers 2 times; last missing: north"
    ):
        run_session(network.coordinator, network.transport(lose_work), 1, tmp_path, KEY, QUICK)
    assert int(network.coordinator.restore(tmp_path).server.round) == 0


def test_a_checkpoint_of_another_federation_or_a_damaged_one(network: Loopback, tmp_path: Path) -> None:
    run_session(network.coordinator, network.transport(), 1, tmp_path, KEY, QUICK)
    other = Loopback(agreement(alg.fedavg(gradient_of(loss), SGD)), tmp_path / "other")
    with pytest.raises(BadMessage, match="another federation"):
        other.coordinator.restore(tmp_path)
    path = tmp_path / "round_000001.server"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadMessage, match=r"round_000001.server: .*cut or lengthened"):
        network.coordinator.restore(tmp_path)
