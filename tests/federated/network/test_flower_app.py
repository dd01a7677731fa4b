"""The two Flower apps in one process: real Flower messages, a grid that calls the client app instead of a network."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from medvfm_jax.federated.network.coordinator import Progress, make_coordinator
from medvfm_jax.federated.network.flower_app import Session, client_app, server_app, transport
from medvfm_jax.federated.network.session import Patience
from medvfm_jax.federated.network.site import Site
from tests.federated.cases import STEPS, data
from tests.federated.network.loopback import KEY, NODES, SITES, rows, scaffold_agreement, simulate

SCAFFOLD = scaffold_agreement()
SERVER_NODE, RUN = 1, 77
QUICK = Patience(answer=5, joining=0.05, greeting=5, pause=0.01, tries=1)
Fault = Callable[[Message, Message], Message | None]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own processes set this before they start an app."""
    for name, value in (("_task_id", 5), ("_run_id", RUN), ("_node_id", SERVER_NODE)):
        monkeypatch.setattr(TaskIdentity, name, value)


class DirectGrid(Grid):
    """Numbers messages and pairs replies as Flower's server does; fault(request, reply) may replace a reply."""

    def __init__(self, answer: Callable[[int, Message], Message], fault: Fault = lambda _, reply: reply):
        self.answer, self.fault, self.sent = answer, fault, 0

    def get_node_ids(self) -> Iterable[int]:
        return list(NODES.values())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self.sent += 1
            message.metadata.__dict__["_message_id"] = str(self.sent)
            replies.append(self.fault(message, self.answer(message.metadata.dst_node_id, message)))
        return [reply for reply in replies if reply is not None]

    def set_run(self, run: Any) -> None: ...
    def run(self) -> None: ...
    def create_message(self, *args: Any) -> Message: ...
    def push_messages(self, messages: Iterable[Message]) -> list: ...
    def pull_messages(self, message_ids: Iterable[str]) -> list: ...


def run_apps(folder: Path, rounds: int, fault: Fault = lambda _, reply: reply) -> Progress:
    def build_site(node: dict, run: dict) -> Site:
        row = SITES.index(node["site"])
        return Site(SCAFFOLD, node["site"], lambda _: (rows(data(), row), STEPS), folder / node["site"])

    app = client_app(build_site)

    def answer(node: int, message: Message) -> Message:
        site = next(site for site, number in NODES.items() if number == node)
        return app(message, Context(RUN, node, {"site": site}, RecordDict(), {}))

    ended = []
    session = Session(
        make_coordinator(SCAFFOLD, SITES, nodes=NODES), rounds, folder / "run", KEY, QUICK, 3, ended.append
    )
    server_app(lambda run: session)(
        DirectGrid(answer, fault), Context(RUN, SERVER_NODE, {}, RecordDict(), {})
    )
    return ended[0]


def is_work(message: Message) -> bool:
    return b'"kind":"work"' in message.content.array_records["medvfm"]["medvfm"].data


def test_two_rounds_equal_the_simulator(tmp_path: Path) -> None:
    progress = run_apps(tmp_path, 2)
    server, _ = simulate(SCAFFOLD, None, [[True] * 3] * 2)
    chex.assert_trees_all_close(progress.server, server, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(progress.accepted, [1, 1, 1])


def gone(request: Message) -> Message:
    """What Flower's server answers for a node that stopped: it names itself as the sender."""
    reply = Message(Error(5, "x" * 10_000), reply_to=request)
    reply.metadata.__dict__["_src_node_id"] = SERVER_NODE
    return reply


def holding(record: RecordDict) -> Callable[[Message], Message]:
    return lambda request: Message(record, reply_to=request)


def array(data: bytes) -> Array:
    return Array("uint8", (len(data),), "bytes", data)


WRONG = {
    "an error of Flower": (gone, "it went offline"),
    "no record": (holding(RecordDict()), "not one of this package"),
    "another record": (
        holding(RecordDict({"other": ArrayRecord({"medvfm": array(b"")})})),
        "not one of this package",
    ),
    "another array": (
        holding(RecordDict({"medvfm": ArrayRecord({"weights": array(b"")})})),
        "not one of this package",
    ),
    "other bytes": (
        holding(RecordDict({"medvfm": ArrayRecord({"medvfm": array(bytes(200))})})),
        "not a message of this package",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reply_names_its_site_and_the_round_goes_on(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = WRONG[name]

    def fault(request: Message, reply: Message) -> Message:
        return make(request) if is_work(request) and request.metadata.dst_node_id == NODES["east"] else reply

    progress = run_apps(tmp_path, 1, fault)
    np.testing.assert_array_equal(progress.accepted, [0, -1, 0])
    server, _ = simulate(SCAFFOLD, None, [[True, False, True]])
    chex.assert_trees_all_close(progress.server, server, rtol=1e-5, atol=1e-6)
    (line,) = [line for line in caplog.messages if "was left out" in line]
    assert "east was left out" in line
    assert words in line
    assert len(line) < 300


def test_a_reply_to_something_else_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fault(request: Message, reply: Message) -> Message:
        if is_work(request) and request.metadata.dst_node_id == NODES["east"]:
            reply.metadata.__dict__["_reply_to_message_id"] = "older"
        return reply

    progress = run_apps(tmp_path, 1, fault)
    np.testing.assert_array_equal(progress.accepted, [0, -1, 0])
    assert "not sent in this round" in caplog.text
    assert "east did not answer in time" in caplog.text


def test_what_fails_while_a_site_is_built_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)

    def build_site(node: dict, run: dict) -> Site:
        raise FileNotFoundError("/data/patient_4711/scan.nii.gz")

    app = client_app(build_site)
    grid = DirectGrid(lambda node, message: app(message, Context(RUN, node, {}, RecordDict(), {})))
    replies = transport(grid).exchange({7: b"anything"}, 1.0)
    assert list(replies) == [7]
    assert b"4711" not in replies[7]
    assert b'"kind":"failed"' in replies[7]
    assert "4711" in caplog.text
