"""A site's part in secure aggregation: four answers a round, each given once.

What it must remember between them is in ``RUN.secrets`` beside its state: a node may be a process per message.  Secrets
serve one round; asked to join again, a site begins anew with others, so a round that is tried again exposes nothing.
Once it has revealed shares it never joins that round again, nor one before it: more than half of the sites must reveal
for a sum, so there is at most one sum of a round, with one draw of the noise, whatever the server forgets.
"""

import hashlib
import secrets as system_random
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.core.records import Report, Tree
from medvfm_jax.federated.network import secure_messages as messages
from medvfm_jax.federated.network import secure_protocol as protocol
from medvfm_jax.federated.network.agreement import KEY_IMPLEMENTATION
from medvfm_jax.federated.network.layouts import layout, payload_bytes, read_payload, write_payload
from medvfm_jax.federated.network.messages import BadMessage, Header, Message, encode, expect
from medvfm_jax.federated.network.secure_messages import Kept, SecureShapes
from medvfm_jax.federated.network.storage import read_message, write_message
from medvfm_jax.federated.secure.secure_sum import SecureSum

ASKED = (messages.JOIN, messages.DEAL, "work", messages.REVEAL)

Train = Callable[[Tree], Report]


class OutOfRange(BadMessage):
    """The update does not fit the grid that was agreed on."""


class SecureSite:
    """Answers of one site; ``folder``: where it keeps its secrets.

    ``answer(message, train) -> (kind of the reply, its payload)``; train(download) -> `Report` does the local work of
    the round, in the third answer only.  Raises BadMessage for a step that comes out of order, twice, or with contents
    that do not fit: nothing is given away then.
    """

    def __init__(self, secure: SecureSum, shapes: SecureShapes, folder: Path):
        self._secure, self._shapes, self._folder = secure, shapes, folder
        self._encode = jax.jit(secure.encode)

    @property
    def limit(self) -> int:
        """Of the payload of any message it may be sent."""
        shapes = self._shapes
        return max(payload_bytes(part) for part in (shapes.listed, shapes.work, shapes.answered))

    def answer(self, message: Message, train: Train) -> tuple[str, Tree]:
        """One answer of the round."""
        asked = message.header
        if asked.kind == messages.JOIN:
            return messages.KEYS, self._join(asked)
        kept = self._kept(asked)
        if asked.kind == messages.DEAL:
            return messages.DEALT, self._deal(asked, kept, message)
        if asked.kind == messages.REVEAL:
            return messages.REVEALED, self._reveal(asked, kept, message)
        return "done", self._send(asked, kept, message, train)

    def _join(self, asked: Header) -> messages.Keys:
        self._refuse_spent(asked)
        own, shapes = protocol.new_secrets(), self._shapes.kept
        kept = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        self._keep(asked, kept._replace(secrets=messages.table(dict(enumerate(own)), shapes.secrets)))
        public = dict(enumerate(protocol.public_keys(own)))
        return messages.Keys(messages.table(public, self._shapes.keys.keys))

    def _refuse_spent(self, asked: Header) -> None:
        rounds = self._secure.rounds
        if rounds is not None and asked.round >= rounds:
            raise BadMessage(
                f"Round {asked.round} was asked for, and the noise was made for {rounds} rounds, counted from 0: more "
                "would cost more epsilon than was agreed on."
            )
        stored = self._stored(asked)
        if stored is None:
            return
        header, kept = stored
        revealed = messages.STAGES[int(kept.stage)] == "shares revealed"
        if asked.round < header.round + revealed:
            raise messages.RoundSpent(
                f"Round {asked.round} was asked for after this site had revealed its shares of it, or joined a later "
                "one: a second sum would undo what the first one hides."
            )

    def _deal(self, asked: Header, kept: Kept, message: Message) -> messages.Dealt:
        listed = self._read(message, self._shapes.listed)
        self._in_order(kept, 0)
        own = _secrets(kept)
        if not listed.joined[asked.client] or _pair(listed.keys[asked.client]) != protocol.public_keys(own):
            raise BadMessage("The list of keys does not hold this site's own.")
        kept = kept._replace(stage=np.int32(1), keys=listed.keys, joined=listed.joined)
        sealed = protocol.deal(own, asked.client, self._about(asked, kept))
        self._keep(asked, kept)
        return messages.Dealt(messages.table(sealed, self._shapes.dealt.sealed))

    def _send(self, asked: Header, kept: Kept, message: Message, train: Train) -> messages.Masked:
        work = self._read(message, self._shapes.work)
        self._in_order(kept, 1)
        partners = frozenset(np.flatnonzero(work.partners).tolist())
        if asked.client not in partners or not partners <= _rows(kept.joined):
            raise BadMessage("The partners of the round are not sites that joined it, this one among them.")
        if len(partners) < self._secure.threshold:
            raise BadMessage(
                f"{len(partners)} sites dealt shares, {self._secure.threshold} are needed: so few would not hide this "
                "site's update."
            )
        own, about = _secrets(kept), self._about(asked, kept)
        sealed = {row: work.sealed[row].tobytes() for row in partners}
        shares = protocol.open_shares(own, asked.client, about, sealed)
        report = train(work.download)
        values, fits = self._encode(own_key(), rotation_key(asked), report.upload, report.weight)
        if not fits:
            raise OutOfRange("The update or its weight lies outside of the range that was agreed on.")
        joined = {row: b"".join(parts) for row, parts in shares.items()}
        kept = kept._replace(
            stage=np.int32(2),
            partners=work.partners,
            shares=messages.table(joined, self._shapes.kept.shares),
        )
        self._keep(asked, kept)  # first, so that no second update is ever masked with these secrets
        bits = self._secure.bits
        masked = protocol.mask(own, asked.client, about, dict.fromkeys(partners), np.asarray(values), bits)
        loss = report.loss if jax.tree.leaves(self._shapes.masked.loss) else ()
        return messages.Masked(masked.astype(messages.word(self._secure)), loss)

    def _reveal(self, asked: Header, kept: Kept, message: Message) -> messages.Revealed:
        answered = _rows(self._read(message, self._shapes.answered).answered)
        self._in_order(kept, 2)
        if not answered <= _rows(kept.partners) or len(answered) < self._secure.threshold:
            raise BadMessage(
                f"{len(answered)} updates are said to have arrived; of the sites of this round at least "
                f"{self._secure.threshold} must have, or a sum would expose too few."
            )
        shares = {row: _pair(kept.shares[row]) for row in _rows(kept.partners)}
        revealed = protocol.reveal(shares, answered)
        wiped = kept._replace(
            stage=np.int32(3), secrets=np.zeros_like(kept.secrets), shares=np.zeros_like(kept.shares)
        )
        self._keep(asked, wiped)  # first, so that no other set is ever answered
        return messages.Revealed(messages.table(revealed, self._shapes.revealed.shares))

    def _about(self, asked: Header, kept: Kept) -> protocol.Round:
        keys = {row: _pair(kept.keys[row]) for row in _rows(kept.joined)}
        return protocol.Round(asked.run, asked.round, keys, self._secure.threshold)

    def _in_order(self, kept: Kept, stage: int) -> None:
        if int(kept.stage) != stage:
            here, before = messages.STAGES[int(kept.stage)], messages.STAGES[stage]
            raise BadMessage(
                f"A step of secure aggregation came out of order: this site is at '{here}', asked for what follows "
                f"'{before}'. It answers each once a round."
            )

    def _read(self, message: Message, shapes: Tree) -> Tree:
        return read_payload(message.payload, message.header.layout, shapes)

    def _kept(self, asked: Header) -> Kept:
        stored = self._stored(asked)
        if stored is None:
            raise BadMessage("This site was not asked to join this round.")
        header, kept = stored
        expect(header, round=asked.round)
        return kept

    def _stored(self, asked: Header) -> tuple[Header, Kept] | None:
        stored = read_message(self._path(asked), payload_bytes(self._shapes.kept))
        if stored is None:
            return None
        wanted = {field: getattr(asked, field) for field in ("federation", "run", "site", "client")}
        expect(stored.header, kind="secrets", **wanted)
        return stored.header, read_payload(stored.payload, stored.header.layout, self._shapes.kept)

    def _keep(self, asked: Header, kept: Kept) -> None:
        header = Header(
            "secrets", asked.federation, asked.run, asked.round, site=asked.site, client=asked.client,
            layout=layout(kept),
        )  # fmt: skip
        write_message(self._path(asked), encode(header, write_payload(kept)))

    def _path(self, asked: Header) -> Path:
        return self._folder / f"{asked.run}.secrets"


def own_key() -> Array:
    """A key from the operating system, for rounding and noise: never one that was sent."""
    return _key(system_random.token_bytes(8))


def rotation_key(asked: Header) -> Array:
    """The public key of the rotation of a round, the same for all."""
    return _key(hashlib.sha256(f"rotation {asked.run} {asked.round}".encode()).digest()[:8])


def _key(data: bytes) -> Array:
    return jax.random.wrap_key_data(jnp.asarray(np.frombuffer(data, np.uint32)), impl=KEY_IMPLEMENTATION)


def _secrets(kept: Kept) -> protocol.Secrets:
    return protocol.Secrets(*(part.tobytes() for part in kept.secrets))


def _pair(rows: np.ndarray) -> tuple[bytes, bytes]:
    first, second = rows
    return first.tobytes(), second.tobytes()


def _rows(present: np.ndarray) -> frozenset[int]:
    return frozenset(np.flatnonzero(present).tolist())
