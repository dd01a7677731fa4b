"""A federation of ``network`` as a Flower ClientApp and ServerApp: Flower authenticates nodes and carries bytes.

Examples:
    >>> client = client_app(lambda node, run: Site(make_agreement(run), node["site"], shards, Path(node["state"])))
    >>> images, nodes = {"north": 480, "east": 300}, {"north": 1287961, "east": 1153579}  # declared, and registered
    >>> server = server_app(
    ...     lambda run: Session(make_coordinator(make_agreement(run), images, nodes=nodes), 20, Path("run"))
    ... )

Needs the extra ``federated``.  docs/hospital.md shows a whole federation.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network.coordinator import Coordinator, Progress
from medvfm_jax.federated.network.messages import BadMessage
from medvfm_jax.federated.network.session import Patience, Transport, run_session
from medvfm_jax.federated.network.site import Site, failure, make_site


class MissingFlower(BadFederation, ImportError):
    """Flower is not installed."""


try:
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
except ImportError as error:
    raise MissingFlower(
        "A federation over the network needs Flower; install it with pip install 'medvfm-jax[federated]'."
    ) from error

_LOG = logging.getLogger(__name__)
_RECORD = "medvfm"
# Numbers of Flower's protocol; the text beside them is written by the other side and may say anything at any length.
_ERRORS = {1: "its app could not be loaded", 2: "its app failed", 4: "it came too late", 5: "it went offline"}

Settings = Mapping[str, Any]


def log_to_terminal() -> None:
    """Show what this package does, with the time; call it in the file of the app, where Flower starts each process."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("medvfm_jax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class Session(NamedTuple):
    """What a server app does, see ``run_session``; done(progress) is called at the end, to store the delta."""

    coordinator: Coordinator
    rounds: int
    folder: Path
    key: Array | None = None
    patience: Patience = Patience()
    fewest: int = 1
    done: Callable[[Progress], None] = lambda progress: None


def client_app(build: Callable[[Settings, Settings], Site]) -> ClientApp:
    """ClientApp of a hospital; build(node configuration, run configuration) -> Site, called for every message.

    A SuperNode handles every message in a process of its own, so nothing is kept in memory between two rounds.
    Whatever goes wrong, also in ``build``, is logged here; the server learns a word of ``site.REASONS``.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        try:
            answer = make_site(build(context.node_config, context.run_config))
            reply = answer(context.node_id, _bytes_of(message))
        except Exception:  # Flower would send its text, which may name a patient's file
            _LOG.exception("this site cannot take part")
            reply = failure(context.node_id)
        return Message(_content(reply), reply_to=message)

    return app


def server_app(build: Callable[[Settings], Session]) -> ServerApp:
    """ServerApp of a federation; build(run configuration) -> Session."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        session = build(context.run_config)
        progress = run_session(
            session.coordinator,
            transport(grid),
            session.rounds,
            session.folder,
            session.key,
            session.patience,
            session.fewest,
        )
        session.done(progress)

    return app


def transport(grid: Grid) -> Transport:
    """Carry messages by a Flower grid, which returns early for a node that it finds gone."""

    def nodes() -> Collection[int]:
        return list(grid.get_node_ids())

    def exchange(messages: Mapping[int, bytes], seconds: float) -> dict[int, bytes | str]:
        requests = [
            Message(_content(data), dst_node_id=node, message_type="train", ttl=seconds)
            for node, data in messages.items()
        ]
        received = list(grid.send_and_receive(requests, timeout=seconds))
        # An error that Flower's server writes names that server as its sender, so only the question tells the node.
        asked = {request.metadata.message_id: request.metadata.dst_node_id for request in requests}
        replies: dict[int, bytes | str] = {}
        for reply in received:
            node = asked.get(reply.metadata.reply_to_message_id)
            if node is None:
                _LOG.warning("a reply to a message that was not sent in this round was dropped")
                continue
            try:
                replies[node] = _bytes_of(reply)
            except BadMessage as error:
                replies[node] = str(error)
        return replies

    return Transport(nodes, exchange)


def _content(data: bytes) -> RecordDict:
    """One array of bytes: Flower sends arrays in pieces, so a message may be larger than gRPC allows."""
    return RecordDict({_RECORD: ArrayRecord({_RECORD: FlowerArray("uint8", (len(data),), "bytes", data)})})


def _bytes_of(message: Message) -> bytes:
    """The bytes in a Flower message; raises BadMessage for one that holds something else, or an error."""
    if message.has_error():
        code = message.error.code
        raise BadMessage(f"There is no answer of this site: {_ERRORS.get(code, f'error {code} of Flower')}.")
    records = message.content
    if list(records) != [_RECORD] or list(records.array_records) != [_RECORD]:
        raise BadMessage("A Flower message was received that is not one of this package.")
    arrays = records.array_records[_RECORD]
    if list(arrays) != [_RECORD]:
        raise BadMessage("A Flower message was received that is not one of this package.")
    return arrays[_RECORD].data
