"""The rounds of a run over a real network: wait for sites, ask, aggregate what arrived, checkpoint, go on.

The network itself is two functions (`Transport`), so that Flower, a test or something else can carry the bytes.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from jax import Array

from medvfm_jax import local_paths
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network.coordinator import Coordinator, Progress, RoundRecord, random_key
from medvfm_jax.federated.network.messages import BadMessage
from medvfm_jax.runs.run_directory import append_metrics

_LOG = logging.getLogger(__name__)


class Transport(NamedTuple):
    """A network as two functions.

    Attributes:
        nodes: () -> numbers of the nodes that are connected now.
        exchange: (messages {node: bytes}, seconds) -> {node: reply, or one sentence about why there is none}; it
            returns when all have answered or the seconds are over, and leaves out the nodes that did not answer.
    """

    nodes: Callable[[], Collection[int]]
    exchange: Callable[[Mapping[int, bytes], float], Mapping[int, bytes | str]]


class Patience(NamedTuple):
    """How long the server waits, in seconds, and how often it tries.

    Attributes:
        answer: for the answers of one exchange of a round.
        joining: for enough sites to be connected, before every round.
        greeting: for new nodes to say which site they are.
        pause: between two looks at which nodes are connected.
        again: before a node that was not admitted is asked again; every question starts a process there.
        tries: attempts at one round, if too few sites answer.
    """

    answer: float = 3600.0
    joining: float = 3600.0
    greeting: float = 120.0
    pause: float = 3.0
    again: float = 300.0
    tries: int = 3


def run_session(
    coordinator: Coordinator,
    transport: Transport,
    rounds: int,
    folder: Path,
    key: Array | None = None,
    patience: Patience = Patience(),  # noqa: B008 - immutable
    fewest: int = 1,
) -> Progress:
    """Run until ``rounds`` rounds are done, from the last checkpoint in ``folder`` if there is one.

    Every attempt at a round is a line of ``folder/metrics.jsonl``, with "no_sum" where nothing changed, and every round
    done is a checkpoint.  With privacy the line holds nothing that the noise does not cover; the log names sites that
    were left out.  At the end the key of the noise is forgotten.

    Args:
        coordinator: from `make_coordinator`.
        transport: carries the messages.
        rounds: of the whole run, those before a restart included.
        folder: of the run: metrics and checkpoints.
        key: of a new run, of the implementation threefry2x32; None for one from the operating system. A resumed run
            keeps its own, and noise never comes from it.
        patience: times to wait.
        fewest: sites that must be connected before a round is asked.

    Returns:
        The state after the last round.

    Raises:
        BadFederation: too few sites connect or answer, or the model becomes infinite; the checkpoint of the last good
            round is then in place. Also for a key of another kind.
        BadMessage: the checkpoint is damaged or of another federation.
        BadPath: a folder that is no path on a disk of this machine.
    """
    local_paths.check(folder, "The folder of the run")
    progress = coordinator.restore(folder)
    if progress is None:
        progress = coordinator.begin(random_key() if key is None else key)
        coordinator.save(folder, progress)
    present = _Present({}, {})
    while int(progress.server.round) < rounds:
        for attempt in range(patience.tries):
            nodes = _gather(coordinator, progress, transport, present, patience, fewest)
            new, record = coordinator.round(progress, nodes, transport.exchange, patience.answer)
            _report(folder, record, attempt, coordinator.private)
            if int(new.server.round) > record.round:
                break
        else:
            raise BadFederation(
                f"Round {record.round} had too few usable answers {patience.tries} times; last missing: "
                f"{', '.join(record.missing) or 'none'}; refused: {', '.join(record.refused) or 'none'}. "
                "Start again with the same folder when the sites are back."
            )
        progress = new
        coordinator.save(folder, progress)
    return coordinator.forget(folder, progress)


class _Present(NamedTuple):
    """known: {node: site} that were admitted.  refused: {node: clock time before which it is not asked again}."""

    known: dict[int, str]
    refused: dict[int, float]


def _gather(
    coordinator: Coordinator,
    progress: Progress,
    transport: Transport,
    present: _Present,
    patience: Patience,
    fewest: int,
) -> dict[str, int]:
    """{site: node} of the sites that are connected, at least ``fewest``; ``present`` is kept up to date."""
    end = time.monotonic() + patience.joining
    while True:
        connected = set(transport.nodes())
        for node in present.known.keys() - connected:
            _LOG.warning("%s is not connected any more", present.known.pop(node))
        for node in present.refused.keys() - connected:
            del present.refused[node]
        _greet(coordinator, progress, transport, present, connected, patience)
        if len(present.known) >= fewest:
            return {site: node for node, site in present.known.items()}
        if time.monotonic() > end:
            absent = sorted(set(coordinator.sites) - set(present.known.values()))
            raise BadFederation(
                f"{len(present.known)} of at least {fewest} sites were connected after {patience.joining:g} "
                f"seconds; absent: {', '.join(absent)}."
            )
        time.sleep(patience.pause)


def _greet(
    coordinator: Coordinator,
    progress: Progress,
    transport: Transport,
    present: _Present,
    connected: Collection[int],
    patience: Patience,
) -> None:
    """Ask new nodes who they are.  A name that a connected node has already is not given twice."""
    now = time.monotonic()
    new = [n for n in sorted(connected) if n not in present.known and present.refused.get(n, now) <= now]
    if not new:
        return
    replies = transport.exchange({node: coordinator.hello(progress, node) for node in new}, patience.greeting)
    for node in new:
        try:
            reply = replies.get(node, "It did not answer in time.")
            if isinstance(reply, str):
                raise BadMessage(reply)
            site = coordinator.admit(progress, node, reply)
            if site in present.known.values():
                raise BadMessage(f"It says it is {site}, and another connected node said so before.")
        except BadMessage as error:
            _LOG.warning("node %d was not admitted: %s", node, error)
            present.refused[node] = time.monotonic() + patience.again
            continue
        present.known[node] = site
        _LOG.info("%s has joined as node %d", site, node)


def _report(folder: Path, record: RoundRecord, attempt: int, private: bool) -> None:
    loss = None if record.metrics is None else float(record.metrics.loss)
    line = {"round": record.round, "attempt": attempt}
    line |= {"no_sum": True} if record.metrics is None else {}
    if not private:
        line |= {
            "loss": loss,
            "arrived": record.arrived,
            "refused": record.refused,
            "missing": record.missing,
            "upload_bytes": record.upload_bytes,
            "download_bytes": record.download_bytes,
            "time": round(time.time(), 3),
        }
    append_metrics(folder, line)
    outcome = "noise added" if private else f"mean loss {loss:.4f}" if loss is not None else ""
    outcome = "too few, nothing changed" if record.metrics is None else outcome
    _LOG.info(
        "round %d: %d of %d sites, %s, %d bytes up, %d down",
        record.round,
        len(record.arrived),
        len(record.arrived) + len(record.refused) + len(record.missing),
        outcome,
        record.upload_bytes,
        record.download_bytes,
    )
    for site, sentence in record.refused.items():
        _LOG.warning("round %d: %s was left out: %s", record.round, site, sentence)
    for site in record.missing:
        _LOG.warning("round %d: %s did not answer in time", record.round, site)
