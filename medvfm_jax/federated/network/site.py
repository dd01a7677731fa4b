"""The hospital's side: a message from the server becomes local work, and an answer; data never enters a message.

A site's own state (control variates, error feedback, personal parts) counts only once the server has accepted the
update made with it.  So two states are kept on disk, the last accepted one and the one of the last answer; the next
message says which of them is in force.  A lost answer, a round that is asked again and a restart of either side
therefore leave the same numbers as a run without them.

Where the work adds noise that protects patients, its key comes from a secret of this site, in ``noise.secret`` in its
folder: the server must not be able to take the noise off what it receives.  A question that is repeated is answered
with the same noise; another one for the same round is refused, because many draws of the noise average away
(``answered_rounds``).  The exact loss is then not sent either: it is given as 0.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Client, Report, Server, Shard
from medvfm_jax.federated.core.tree_math import all_finite
from medvfm_jax.federated.network import answered_rounds
from medvfm_jax.federated.network.agreement import (
    KEY_IMPLEMENTATION,
    Agreement,
    Contract,
    Download,
    Upload,
    contract,
    first_client,
    received_server,
)
from medvfm_jax.federated.network.layouts import layout, payload_bytes, read_payload, write_payload
from medvfm_jax.federated.network.messages import SITE_NAME, BadMessage, Header, decode, encode, expect
from medvfm_jax.federated.network.secure_messages import RoundSpent
from medvfm_jax.federated.network.secure_site import OutOfRange, SecureSite
from medvfm_jax.federated.network.storage import read_message, write_message
from medvfm_jax.federated.privacy.secret_randomness import Secret, secret_in
from medvfm_jax.federated.rounds.federation import client_work
from medvfm_jax.types import MedvfmError

_LOG = logging.getLogger(__name__)

# A failing site says one of these words and nothing else: an exception's text may name a patient's file.
REASONS: Mapping[str, str] = {
    "message": "it refused the server's message; its own log says why",
    "state": "it does not hold the state that the server accepted from it",
    "no_steps": "it has no data for this round",
    "not_finite": "its update is not finite",
    "range": "its update lies outside the range that secure aggregation was given",
    "spent": "it has revealed its part of this round already, or answered as many as its noise was accounted for",
    "error": "its local work failed; its own log says why",
}


class SiteFailed(BadFederation):
    """A site cannot take part in this round; its attribute ``reason`` is a word of ``REASONS``."""

    def __init__(self, reason: str, sentence: str):
        super().__init__(sentence)
        self.reason = reason


class Site(NamedTuple):
    """One hospital.

    Attributes:
        agreement: of all nodes.
        name: as on the server's list of sites.
        shard: (round number) -> (`Shard`, mask (steps,) bool or count of the steps to make); the same for the same
            round. What it draws at random for patient-level privacy must come from the secret of this site
            (`noise_secret`).
        folder: where this site keeps its state, a file per run, and the secret of its noise; other users must not be
            able to read it.
        noisy_answers: rounds, over all runs, that this site answers with noise of its own: the number its privacy was
            accounted for. None: no limit.
    """

    agreement: Agreement
    name: str
    shard: Callable[[int], tuple[Shard, Array | int]]
    folder: Path
    noisy_answers: int | None = None


class _Kept(NamedTuple):
    """What lies in the state file: header.accepted and header.round name the rounds of the two states."""

    accepted: Client
    latest: Client


def make_site(site: Site) -> Callable[[int, bytes], bytes]:
    """Build the function with which a hospital answers the server.

    ``answer`` never raises for anything that a message, the data or the local work can do: the reply then is of the
    kind "failed" with a word of ``REASONS``, and the full sentence goes to this site's log only.

    Args:
        site: its name, data and folder.

    Returns:
        answer(node, request) -> reply, bytes to bytes; ``node`` is this node's number on the network.

    Raises:
        BadFederation: a name that cannot be sent, and as for `contract`.
        BadPrivacy: as for `contract`.
    """
    if not re.fullmatch(SITE_NAME, site.name, re.ASCII):
        raise BadFederation(
            f"This site cannot be named '{site.name:.80}'; take the name on the coordinator's list."
        )
    shapes = contract(site.agreement)
    work = jax.jit(_local_work(site.agreement))
    limit = payload_bytes(shapes.download)
    secure = None
    if site.agreement.secure is not None:
        secure = SecureSite(site.agreement.secure, shapes.secure, site.folder)
        limit = secure.limit

    def answer(node: int, request: bytes) -> bytes:
        run = "0" * 32
        reply = Header("failed", shapes.federation, run, node=node, site=site.name)
        try:
            message = decode(request, limit)
            asked = message.header
            reply = reply._replace(run=asked.run, round=asked.round, client=asked.client)
            expect(asked, federation=shapes.federation, node=node)
            if asked.kind == "hello":
                return encode(reply._replace(kind="here"))
            expect(asked, site=site.name)
            if secure is None:
                expect(asked, kind="work")
                download = read_payload(message.payload, asked.layout, shapes.download)
                kind, sent = "done", _do(site, shapes, work, asked, download)
            else:
                kind, sent = secure.answer(
                    message, lambda download: _report(_do(site, shapes, work, asked, download))
                )
            if kind == "done":
                _LOG.info("round %d: update sent, %d bytes", asked.round, payload_bytes(sent))
            done = reply._replace(kind=kind, accepted=asked.accepted, layout=layout(sent))
            return encode(done, write_payload(sent))
        except SiteFailed as error:
            reason, sentence = error.reason, str(error)
        except OutOfRange as error:
            reason, sentence = "range", str(error)
        except RoundSpent as error:
            reason, sentence = "spent", str(error)
        except BadMessage as error:
            reason, sentence = "message", str(error)
        except MedvfmError as error:
            reason, sentence = "error", str(error)
        except Exception:
            _LOG.exception("round %d failed", reply.round)
            return encode(reply._replace(reason="error"))
        _LOG.error("round %d: nothing sent. %s", reply.round, sentence)
        return encode(reply._replace(reason=reason))

    return answer


def noise_secret(folder: Path) -> Secret:
    """The secret of a site, drawn when it is first asked for."""
    return secret_in(folder / "noise.secret")


def _own_key(site: Site, asked: Header, download: Download) -> np.ndarray:
    """Key data (2,) uint32 of this site for this very question; raises RoundSpent for a second one of a round."""
    question = hashlib.sha256(write_payload(download)).hexdigest()
    answered_rounds.spend(site.folder, asked.run, asked.round, question, site.noisy_answers)
    key = noise_secret(site.folder).key("work", asked.run, asked.round, asked.client, question)
    return np.asarray(jax.random.key_data(key))


def failure(node: int) -> bytes:
    """The reply of a node that cannot even set up its site; the reason is in its log."""
    return encode(Header("failed", "0" * 64, "0" * 32, node=node, reason="error"))


def _local_work(agreement: Agreement) -> Callable[..., tuple[Client, Upload, Array]]:
    def work(
        server: Server, client: Client, shard: Shard, mask: Array, key_data: Array
    ) -> tuple[Client, Upload, Array]:
        key = jax.random.wrap_key_data(key_data, impl=KEY_IMPLEMENTATION)
        moved, report, message = client_work(
            agreement.algorithm, agreement.codec, server, client, shard, mask, key
        )
        # A lossy codec may hide what is not finite, and a norm may overflow where no entry does.
        healthy = all_finite((report, moved.state, optax.tree.norm(report.upload)))
        return moved, Upload(message, report.weight, report.loss, report.public), healthy

    return work


def _report(upload: Upload) -> Report:
    """Of an upload that was not compressed."""
    return Report(upload.message, upload.weight, upload.loss, upload.public)


def _do(site: Site, shapes: Contract, work: Callable, asked: Header, download: Download) -> Upload:
    client = _state_in_force(site, shapes, asked)
    shard, mask = site.shard(asked.round)
    mask = _as_mask(shard, mask)
    if not mask.any():
        return _nothing(site, shapes, asked, client, "no_steps", "There is no data for this round.")
    server = received_server(shapes, download.server)._replace(round=jnp.int32(asked.round))
    key = _own_key(site, asked, download) if shapes.noisy else download.key
    moved, upload, healthy = work(server, client, shard, mask, key)
    if not healthy:
        sentence = "The update is not finite; look at the data and the learning rate."
        return _nothing(site, shapes, asked, client, "not_finite", sentence)
    _keep(site, asked, _Kept(client, moved))
    upload = upload._replace(loss=jnp.zeros_like(upload.loss)) if shapes.noisy else upload
    return jax.device_get(upload)


def _nothing(
    site: Site, shapes: Contract, asked: Header, client: Client, reason: str, sentence: str
) -> Upload:
    """A round to which this site has nothing to add: raises SiteFailed, unless it adds noise to what it sends.

    Then it sends that noise alone: whether a sum is opened must not depend on the data of any site.
    """
    if site.agreement.secure is None or site.agreement.secure.noise == "none":
        raise SiteFailed(reason, sentence)
    _LOG.warning("round %d: nothing but noise is sent. %s", asked.round, sentence)
    _keep(site, asked, _Kept(client, client))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.upload)


def _as_mask(shard: Shard, steps: Array | int) -> np.ndarray:
    if np.ndim(steps):
        return np.asarray(steps, bool)
    return np.arange(jax.tree.leaves(shard.batches)[0].shape[0]) < steps


def _state_in_force(site: Site, shapes: Contract, asked: Header) -> Client:
    """The state that the server accepted last; raises SiteFailed if this site does not hold it."""
    path = _path(site, asked.run)
    header, kept = _read_kept(path, shapes, asked)
    if header is None:
        if asked.accepted >= 0 and payload_bytes(shapes.client._replace(id=())):
            raise SiteFailed(
                "state",
                f"The server accepted round {asked.accepted} of this site and {path} is missing: restore it from a "
                "backup, or ask for a new run.",
            )
        return first_client(site.agreement, shapes, asked.client)
    if asked.accepted not in (header.accepted, header.round):
        raise SiteFailed(
            "state",
            f"{path} holds the rounds {header.accepted} and {header.round} and the server accepted "
            f"{asked.accepted} last.",
        )
    confirmed = asked.accepted == header.round
    if asked.round < header.round + confirmed:
        raise BadMessage(
            f"Round {asked.round} was asked for after round {header.round} was answered: the message is late or "
            "was replayed."
        )
    return jax.tree.map(jnp.asarray, kept.latest if confirmed else kept.accepted)


def _read_kept(path: Path, shapes: Contract, asked: Header) -> tuple[Header | None, _Kept | None]:
    kept_shapes = _Kept(shapes.client, shapes.client)
    try:
        stored = read_message(path, payload_bytes(kept_shapes))
        if stored is None:
            return None, None
        wanted = {field: getattr(asked, field) for field in ("federation", "run", "site", "client")}
        expect(stored.header, kind="site", **wanted)
        return stored.header, read_payload(stored.payload, stored.header.layout, kept_shapes, finite=False)
    except BadMessage as error:
        raise SiteFailed("state", f"The state of this site cannot be used: {error}") from error


def _keep(site: Site, asked: Header, kept: _Kept) -> None:
    header = Header(
        "site",
        asked.federation,
        asked.run,
        asked.round,
        site=site.name,
        client=asked.client,
        accepted=asked.accepted,
        layout=layout(kept),
    )
    write_message(_path(site, asked.run), encode(header, write_payload(kept)))


def _path(site: Site, run: str) -> Path:
    return site.folder / f"{run}.site"
