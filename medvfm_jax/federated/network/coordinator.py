"""The server's side without a network: what to ask, what to accept, and the same aggregation as the simulator.

A round over the network is a simulated round whose clients return what arrived: ``make_round`` with the algorithm's
own ``aggregate``, clipping, noise and exclusion runs on the decoded uploads.  So there is one implementation of a
round, and the numbers agree for the same seeds.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.codecs.wire import message_bits
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Algorithm, Client, Metrics, Privacy, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import all_finite
from medvfm_jax.federated.network.agreement import (
    KEY_IMPLEMENTATION,
    Agreement,
    Contract,
    Download,
    contract,
    first_server,
    named_leaves,
)
from medvfm_jax.federated.network.layouts import layout, read_payload, write_payload
from medvfm_jax.federated.network.messages import BadMessage, Header, decode, encode, expect
from medvfm_jax.federated.network.replies import check_not_failed, check_reply, open_upload_of
from medvfm_jax.federated.network.secure_round import Exchange, Opened, SecureServer
from medvfm_jax.federated.network.storage import read_message, write_message
from medvfm_jax.federated.network.trust import check_secure, check_sites, largest_weights
from medvfm_jax.federated.rounds.federation import make_round, name_excluded
from medvfm_jax.federated.secure.secure_sum import SecureSum, secure_cohort

_KEPT = 2  # checkpoints


class Progress(NamedTuple):
    """What the server keeps between rounds, and on disk.

    Attributes:
        server: as in a simulated round.
        accepted: (n,) int32: the last round whose update of each site entered the aggregate, -1 for none.
        key: (2,) uint32: key data of the run, from which the keys of sites and rounds follow.
        run: 32 hexadecimal digits.
        noise: (2,) uint32: key data of the noise, which nothing that is sent depends on; () without privacy.
    """

    server: Server
    accepted: np.ndarray
    key: np.ndarray
    run: str
    noise: np.ndarray | tuple = ()


class Request(NamedTuple):
    """The messages of one round.

    Attributes:
        nodes: {site: node}, the sites that are asked.
        messages: {node: bytes}, of kind "work".
    """

    nodes: dict[str, int]
    messages: dict[int, bytes]


class RoundRecord(NamedTuple):
    """One round over the network.  Bytes are those of whole messages, headers included, both ways over all sites.

    Attributes:
        round: its number, from 0.
        metrics: as of the simulator, `Metrics.excluded` among them; None if too few sites arrived and nothing
            changed. With secure aggregation the server then still goes on to the next round where too many shares of
            this round's secrets have been revealed.
        arrived: sites whose update was used.
        refused: {site: sentence} of answers that were not used.
        missing: sites that were asked and did not answer.
        upload_bytes: from all sites.
        download_bytes: to all sites.
    """

    round: int
    metrics: Metrics | None
    arrived: tuple[str, ...]
    refused: dict[str, str]
    missing: tuple[str, ...]
    upload_bytes: int
    download_bytes: int


class Coordinator(NamedTuple):
    """The server as pure functions, from ``make_coordinator``.

    Attributes:
        sites: their names; the position is the client's id.
        begin: (key, noise=None) -> Progress; noise: a key of the noise for tests, None for the operating system's
            randomness.
        hello: (progress, node) -> bytes of the question which site a node is.
        admit: (progress, node, reply) -> name of the site; raises BadMessage.
        ask: (progress, {site: node}) -> Request.
        finish: (progress, request, {node: bytes, or a sentence}) -> (Progress, RoundRecord).
        round: (progress, {site: node}, exchange, seconds) -> (Progress, RoundRecord): all of a round, ``ask`` and
            ``finish`` with one exchange, or the four of secure aggregation.
        save: (folder, progress): writes a checkpoint and keeps the last two.
        restore: (folder) -> Progress of the newest checkpoint, or None without one.
        forget: (folder, progress) -> Progress with another key of the noise, as the only checkpoint: for the end of a
            run.
        private: whether noise is added, by the server or by the sites for their patients; then losses are not
            reported.
    """

    sites: tuple[str, ...]
    begin: Callable[..., Progress]
    hello: Callable[[Progress, int], bytes]
    admit: Callable[[Progress, int, bytes], str]
    ask: Callable[[Progress, Mapping[str, int]], Request]
    finish: Callable[[Progress, Request, Mapping[int, bytes | str]], tuple[Progress, RoundRecord]]
    round: Callable[[Progress, Mapping[str, int], Exchange, float], tuple[Progress, RoundRecord]]
    save: Callable[[Path, Progress], None]
    restore: Callable[[Path], Progress | None]
    forget: Callable[[Path, Progress], Progress]
    private: bool


def make_coordinator(
    agreement: Agreement,
    sites: Sequence[str] | Mapping[str, float],
    privacy: Privacy | None = None,
    fewest: int = 1,
    largest_weight: float | None = None,
    nodes: Mapping[str, int] | Literal["first_come"] | None = None,
) -> Coordinator:
    """Build the server of a federation.

    All uploads of a round are held in memory at once: n times the size of an update.  With privacy every round that was
    asked releases its noise, however few sites answer: a round without noise would reveal which sites were missing.

    Args:
        agreement: of all nodes.
        sites: {name: number of samples it declared}, or names alone; the position is the client's id.
        privacy: client-level differential privacy with noise of the server, None for none.
        fewest: with fewer usable answers a round changes nothing, except with privacy.
        largest_weight: of one site in the mean, which it states itself every round; an update above it is refused.
            None: the number it declared, or 1 where the algorithm weighs all sites alike. With ``math.inf`` any
            weight is accepted, so one site can determine the model alone.
        nodes: {site: node} as the keys of the nodes were registered, so that no site can impersonate another.
            "first_come": the first node to claim a name gets it, for networks where every node that can connect is
            trusted.

    Returns:
        The server's functions.

    Raises:
        BadFederation: parts that do not fit together, neither declared samples nor ``largest_weight``, or no
            ``nodes``; from ``begin`` for a key of another implementation, from ``finish`` and ``round`` where the
            model becomes infinite.
        BadMessage: from ``admit`` for a reply that cannot be used or a site that is not on the list, from ``restore``
            for a checkpoint that is damaged or of another federation.
        BadPrivacy: an algorithm that uploads whole models with client-level privacy or noise of the sites, or noise
            on the clip count that is too small.
    """
    largest = largest_weights(agreement, sites, largest_weight)
    sites = tuple(sites)
    check_sites(sites, nodes)
    if not 1 <= fewest <= len(sites):
        raise BadFederation(f"fewest is {fewest}, expected 1 to {len(sites)}, the number of sites.")
    shapes = contract(agreement)
    federation = make_round(_of_arrived(agreement.algorithm), privacy=privacy, backend="loop")
    simulated = jax.jit(federation.round)
    open_upload = partial(open_upload_of, shapes, _decoder(agreement, shapes), largest)
    bits = message_bits(shapes.upload.message)
    aggregate = jax.jit(partial(_aggregate_sum, agreement.algorithm, agreement.secure))
    if agreement.secure is not None:
        check_secure(agreement.secure, len(sites), privacy)

    def header(progress: Progress, kind: str, **fields: object) -> Header:
        return Header(kind, shapes.federation, progress.run, int(progress.server.round), **fields)

    def begin(key: Array, noise: Array | None = None) -> Progress:
        for one in (key,) if noise is None else (key, noise):
            if one.shape or one.dtype != jax.random.key(0, impl=KEY_IMPLEMENTATION).dtype:
                raise BadFederation(f"The run needs one key of the kind {KEY_IMPLEMENTATION}.")
        server = first_server(agreement.algorithm, agreement.delta, privacy.clip if privacy else math.inf)
        accepted = np.full(len(sites), -1, np.int32)
        return Progress(server, accepted, _data(key), secrets.token_hex(16), new_noise(noise))

    def new_noise(noise: Array | None = None) -> np.ndarray | tuple:
        return () if privacy is None else _data(random_key() if noise is None else noise)

    def hello(progress: Progress, node: int) -> bytes:
        return encode(header(progress, "hello", node=node))

    def admit(progress: Progress, node: int, reply: bytes) -> str:
        found = decode(reply, 0).header
        check_not_failed(found, node)
        expect(found, federation=shapes.federation, kind="here", run=progress.run, node=node)
        if found.site not in sites:
            raise BadMessage(f"The site '{found.site}' is not on the list of this run.")
        if nodes != "first_come" and nodes[found.site] != node:
            raise BadMessage(f"It says it is {found.site}, whose key is that of another node.")
        return found.site

    def leaves_of(progress: Progress) -> dict[str, Array]:
        leaves = named_leaves(progress.server)
        return {name: leaves[name] for name in shapes.download.server}

    def key_of(progress: Progress, row: int) -> np.ndarray:
        round_key = jax.random.fold_in(_key(progress.key), progress.server.round)
        return np.asarray(jax.random.key_data(jax.random.fold_in(round_key, np.uint32(row))))

    def ask(progress: Progress, nodes: Mapping[str, int]) -> Request:
        common, contents = write_payload(leaves_of(progress)), layout(shapes.download)
        messages = {}
        for site, node in nodes.items():
            row = sites.index(site)
            key = key_of(progress, row)
            accepted = int(progress.accepted[row])
            fields = {"node": node, "site": site, "client": row, "accepted": accepted, "layout": contents}
            messages[node] = encode(header(progress, "work", **fields), common + write_payload(key))
        return Request(dict(nodes), messages)

    def finish(
        progress: Progress, request: Request, replies: Mapping[int, bytes | str]
    ) -> tuple[Progress, RoundRecord]:
        reports: dict[int, Report] = {}
        refused, missing = {}, []
        for site, node in request.nodes.items():
            reply, row = replies.get(node), sites.index(site)
            if reply is None:
                missing.append(site)
                continue
            try:
                wanted = {"node": node, "site": site, "client": row}
                reports[row] = open_upload(reply, header(progress, "done", **wanted))
            except BadMessage as error:
                refused[site] = str(error)
        asked = np.isin(np.arange(len(sites)), [sites.index(site) for site in request.nodes])
        arrived = np.isin(np.arange(len(sites)), list(reports))
        new, metrics, excluded = progress, None, []
        if privacy is not None or arrived.sum() >= fewest:
            server, _, metrics = simulated(
                progress.server,
                Client((), (), np.arange(len(sites), dtype=np.uint32)),
                _stacked(shapes, reports, len(sites)),
                asked,
                np.ones(len(sites), np.int32),
                _key(progress.key if privacy is None else progress.noise),
                asked & ~arrived,
            )
            excluded = name_excluded(metrics, sites)
            refused |= dict.fromkeys(excluded, "Its update is not finite once it is decoded.")
            if privacy is not None or int(metrics.participants) >= fewest:
                if not all_finite(server.delta):
                    raise BadFederation(
                        f"Round {progress.server.round} made the model infinite although every update was finite: "
                        "lower the server's learning rate and resume from the last checkpoint."
                    )
                counted = arrived & ~np.asarray(metrics.excluded)
                accepted = np.where(counted, progress.server.round, progress.accepted).astype(np.int32)
                metrics = jax.device_get(metrics)
                sent = float(metrics.participants) if privacy is None else privacy.expected_clients
                metrics = metrics._replace(upload_bits=np.float32(bits * sent))
                new = progress._replace(server=jax.device_get(server), accepted=accepted)
            else:
                metrics = None
        record = RoundRecord(
            int(progress.server.round),
            metrics,
            tuple(sites[row] for row in sorted(reports) if sites[row] not in excluded),
            refused,
            tuple(missing),
            sum(len(reply) for reply in replies.values() if isinstance(reply, bytes)),
            sum(len(message) for message in request.messages.values()),
        )
        return new, record

    def plain_round(
        progress: Progress, nodes: Mapping[str, int], exchange: Exchange, seconds: float
    ) -> tuple[Progress, RoundRecord]:
        request = ask(progress, nodes)
        return finish(progress, request, exchange(request.messages, seconds))

    def secure_round(
        progress: Progress, nodes: Mapping[str, int], exchange: Exchange, seconds: float
    ) -> tuple[Progress, RoundRecord]:
        node_of = {sites.index(site): node for site, node in nodes.items()}

        def head(kind: str, row: int) -> Header:
            who = {"node": node_of[row], "site": sites[row], "client": row}
            return header(progress, kind, **who, accepted=int(progress.accepted[row]))

        server = SecureServer(agreement.secure, shapes.secure, node_of, head, check_reply, exchange, seconds)
        leaves = leaves_of(progress)
        downloads = {row: Download(leaves, key_of(progress, row)) for row in node_of}
        opened = server.round(downloads, shapes.report.upload)
        new, metrics = progress, None
        if opened.mean is not None:
            answered = np.isin(np.arange(len(sites)), list(opened.answered))
            moved = aggregate(progress.server, opened.mean, answered, _key(progress.key))
            if not all_finite(moved.delta):
                raise BadFederation(
                    f"Round {progress.server.round} made the model infinite although every update was finite: "
                    "lower the server's learning rate and resume from the last checkpoint."
                )
            accepted = np.where(answered, progress.server.round, progress.accepted).astype(np.int32)
            new = progress._replace(server=jax.device_get(moved), accepted=accepted)
            metrics = _secure_metrics(opened, len(sites))
        elif opened.spent:
            new = progress._replace(server=progress.server._replace(round=progress.server.round + 1))
        record = RoundRecord(
            int(progress.server.round),
            metrics,
            tuple(sites[row] for row in sorted(opened.answered)),
            {sites[row]: why for row, why in opened.refused.items()},
            tuple(sites[row] for row in opened.missing),
            opened.upload_bytes,
            opened.download_bytes,
        )
        return new, record

    def save(folder: Path, progress: Progress) -> None:
        stored = progress._replace(run=())
        head = header(progress, "server", layout=layout(stored))
        write_message(
            folder / f"round_{int(progress.server.round):06d}.server", encode(head, write_payload(stored))
        )
        for old in _checkpoints(folder)[:-_KEPT]:
            old.unlink(missing_ok=True)

    def restore(folder: Path) -> Progress | None:
        found = _checkpoints(folder)
        if not found:
            return None
        key = jax.ShapeDtypeStruct((2,), np.uint32)
        accepted = jax.ShapeDtypeStruct((len(sites),), np.int32)
        stored = Progress(shapes.server, accepted, key, (), () if privacy is None else key)
        # Any size, so that a checkpoint of another federation is called so and not too large.
        message = read_message(found[-1], found[-1].stat().st_size)
        try:
            expect(message.header, kind="server", federation=shapes.federation)
            progress = read_payload(message.payload, message.header.layout, stored, finite=False)
        except BadMessage as error:
            raise BadMessage(f"{found[-1]}: {error}") from error
        return progress._replace(run=message.header.run)

    private = (
        privacy is not None
        or shapes.noisy
        or (agreement.secure is not None and agreement.secure.noise != "none")
    )

    def forget(folder: Path, progress: Progress) -> Progress:
        if privacy is None:
            return progress
        progress = progress._replace(noise=new_noise())
        save(folder, progress)
        for old in _checkpoints(folder)[:-1]:
            old.unlink(missing_ok=True)
        return progress

    run_round = plain_round if agreement.secure is None else secure_round
    return Coordinator(sites, begin, hello, admit, ask, finish, run_round, save, restore, forget, private)


def random_key() -> Array:
    """A key from the operating system's generator: with a key that can be guessed, the noise can be subtracted."""
    return jax.random.wrap_key_data(np.frombuffer(secrets.token_bytes(8), np.uint32), impl=KEY_IMPLEMENTATION)


def _aggregate_sum(
    algorithm: Algorithm, secure: SecureSum | None, server: Server, mean: Tree, answered: Array, key: Array
) -> Server:
    """The end of a round from the mean of its updates; answered (n,) bool."""
    round_key = jax.random.fold_in(key, server.round)
    cohort = secure_cohort(secure, answered, answered.shape[0], round_key)
    return algorithm.aggregate(server, mean, cohort)._replace(round=server.round + 1)


def _secure_metrics(opened: Opened, sites: int) -> Metrics:
    """What a server can say of a round whose updates it has not seen; NaN for the rest."""
    losses = np.array([opened.losses.get(row, 0.0) for row in range(sites)], np.float32)
    mean = np.float32(np.mean(list(opened.losses.values())) if opened.losses else np.nan)
    unknown, count = np.float32(np.nan), np.float32(len(opened.answered))
    return Metrics(
        mean, losses, unknown, np.float32(8 * opened.upload_bytes), np.float32(8 * opened.download_bytes), count,
        np.int32(len(opened.missing)), np.zeros(sites, bool), {},
    )  # fmt: skip


def _of_arrived(algorithm: Algorithm) -> Algorithm:
    """The algorithm on a server that holds the reports already: a client's only batch is its report."""

    def client_update(
        server: Server, state: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        del server, step_mask, key
        return state, jax.tree.map(lambda x: x[0], shard.batches)

    if algorithm.measures_own:  # of states that never leave the hospitals
        algorithm = algorithm._replace(measure=None, measures_own=False)
    return algorithm._replace(client_update=client_update, init_client=lambda delta, client_id: ())


def _stacked(shapes: Contract, reports: Mapping[int, Report], clients: int) -> Shard:
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.report)
    rows = [reports.get(row, zeros) for row in range(clients)]
    return Shard(jax.tree.map(lambda *x: np.stack(x)[:, None], *rows), np.ones(clients, np.float32))


def _decoder(agreement: Agreement, shapes: Contract) -> Callable[[Tree], Tree]:
    return jax.jit(lambda message: agreement.codec.decode(message, shapes.report.upload))


def _key(data: np.ndarray) -> Array:
    return jax.random.wrap_key_data(jnp.asarray(data), impl=KEY_IMPLEMENTATION)


def _data(key: Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob("round_*.server"))
