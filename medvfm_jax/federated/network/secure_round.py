"""The server's side of a round with secure aggregation: four exchanges, after which it knows one sum.

Sites that do not answer one of them are left out of what follows.  With fewer than the threshold in any of them the
round has no sum and changes nothing; it is then asked again from the beginning, with new secrets everywhere.  Unless so
many sites have revealed their shares of it, to a server that stopped before it saved the sum, that there can be none.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from medvfm_jax.federated.core.records import Tree
from medvfm_jax.federated.network import secure_messages as messages
from medvfm_jax.federated.network import secure_protocol as protocol
from medvfm_jax.federated.network.layouts import layout, payload_bytes, read_payload, write_payload
from medvfm_jax.federated.network.messages import BadMessage, Header, decode, encode
from medvfm_jax.federated.network.secure_messages import SecureShapes
from medvfm_jax.federated.network.secure_site import rotation_key
from medvfm_jax.federated.secure.secure_sum import SecureSum
from medvfm_jax.types import MedvfmError

Exchange = Callable[[Mapping[int, bytes], float], Mapping[int, bytes | str]]


class Opened(NamedTuple):
    """What the server learns.  mean: None if too few answered.  losses {row: loss}: of those who sent one.

    answered: rows whose update is in the mean.  refused {row: sentence} and missing: of those that were asked.
    upload_bytes and download_bytes: of all messages.
    spent: whether no sum of this round can ever be opened, because too many sites have revealed their shares of it.
    """

    mean: Tree | None
    answered: frozenset[int]
    losses: dict[int, float]
    refused: dict[int, str]
    missing: tuple[int, ...]
    upload_bytes: int
    download_bytes: int
    spent: bool = False


class SecureServer:
    """One round of a server.

    nodes {row: node}; header(kind, row) -> what every message says; check(header of a reply, the wanted one): raises
    BadMessage for a reply that is another site's, another round's, or a failure.
    """

    def __init__(
        self,
        secure: SecureSum,
        shapes: SecureShapes,
        nodes: Mapping[int, int],
        header: Callable[[str, int], Header],
        check: Callable[[Header, Header], None],
        exchange: Exchange,
        seconds: float,
    ):
        self._secure, self._shapes, self._nodes = secure, shapes, dict(nodes)
        self._header, self._check, self._exchange, self._seconds = header, check, exchange, seconds
        self._refused: dict[int, str] = {}
        self._missing: list[int] = []
        self._spent: set[int] = set()
        self._bytes = [0, 0]

    def round(self, downloads: Mapping[int, Tree], like: Tree) -> Opened:
        """downloads {row: what the site receives}; like: shapes of an update."""
        shapes, n = self._shapes, self._secure.clients
        joined = self._ask(messages.JOIN, messages.KEYS, dict.fromkeys(self._nodes, ()), shapes.keys)
        if len(joined) < self._secure.threshold:
            return self._nothing()
        keys = {row: _pair(reply.keys) for row, reply in joined.items()}
        first = self._header(messages.JOIN, min(joined))
        about = protocol.Round(first.run, first.round, keys, self._secure.threshold)
        flat = {row: a + b for row, (a, b) in keys.items()}
        listed = messages.Listed(messages.table(flat, shapes.listed.keys), _mask(n, keys))
        dealt = self._ask(messages.DEAL, messages.DEALT, dict.fromkeys(joined, listed), shapes.dealt)
        if len(dealt) < self._secure.threshold:
            return self._nothing()
        partners = frozenset(dealt)
        work = {
            row: messages.Work(
                downloads[row],
                np.where(_mask(n, dealt)[:, None], self._sealed_for(row, dealt), 0).astype(np.uint8),
                _mask(n, dealt),
            )
            for row in dealt
        }
        sent = self._ask("work", "done", work, shapes.masked)
        answered = frozenset(sent)
        if len(answered) < self._secure.threshold:
            return self._nothing()
        question = messages.Answered(_mask(n, answered))
        told = self._ask(
            messages.REVEAL, messages.REVEALED, dict.fromkeys(answered, question), shapes.revealed
        )
        revealed = {
            holder: {row: reply.shares[row].tobytes() for row in partners} for holder, reply in told.items()
        }
        total = np.zeros(shapes.masked.values.shape, np.uint32)
        for reply in sent.values():
            total += reply.values.astype(np.uint32)
        try:
            opened = protocol.unmask(total, about, partners, answered, revealed, self._secure.bits)
        except MedvfmError as error:
            for row in answered:
                self._refused.setdefault(row, f"The sum could not be opened: {error}")
            return self._nothing()
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        mean = self._secure.decode(rotation_key(first), opened, zeros)
        told = bool(jax.tree.leaves(shapes.masked.loss))
        losses = {row: float(reply.loss) for row, reply in sent.items()} if told else {}
        return self._end(mean, answered, losses)

    def _sealed_for(self, row: int, dealt: Mapping[int, messages.Dealt]) -> np.ndarray:
        found = np.zeros(self._shapes.work.sealed.shape, np.uint8)
        for sender, reply in dealt.items():
            found[sender] = reply.sealed[row]
        return found

    def _ask(self, kind: str, wanted: str, payloads: Mapping[int, Tree], shapes: Tree) -> dict[int, Tree]:
        """Send each site its payload -> {row: payload of a good answer}; who gave none is noted."""
        questions = {}
        for row, payload in payloads.items():
            head = self._header(kind, row)._replace(layout=layout(payload))
            questions[self._nodes[row]] = encode(head, write_payload(payload))
        self._bytes[1] += sum(map(len, questions.values()))
        replies = self._exchange(questions, self._seconds)
        self._bytes[0] += sum(len(reply) for reply in replies.values() if isinstance(reply, bytes))
        found = {}
        for row in payloads:
            reply = replies.get(self._nodes[row])
            try:
                if reply is None:
                    self._missing.append(row)
                    continue
                if isinstance(reply, str):
                    raise BadMessage(reply)
                message = decode(reply, payload_bytes(shapes))
                self._check(message.header, self._header(wanted, row))
                found[row] = read_payload(message.payload, message.header.layout, shapes)
            except BadMessage as error:
                self._refused[row] = str(error)
                if isinstance(error, messages.RoundSpent):
                    self._spent.add(row)
        return found

    def _nothing(self) -> Opened:
        return self._end(None, frozenset(), {})

    def _end(self, mean: Tree | None, answered: frozenset[int], losses: dict[int, float]) -> Opened:
        # Who sent an update and then vanished is in the sum all the same.
        missing = tuple(row for row in self._missing if row not in answered)
        refused = {row: why for row, why in self._refused.items() if row not in answered or mean is None}
        spent = self._secure.clients - len(self._spent) < self._secure.threshold
        return Opened(mean, answered, losses, refused, missing, *self._bytes, spent)


def _mask(n: int, rows: object) -> np.ndarray:
    return np.isin(np.arange(n), list(rows))


def _pair(keys: np.ndarray) -> tuple[bytes, bytes]:
    return keys[0].tobytes(), keys[1].tobytes()
