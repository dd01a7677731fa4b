"""The bytes that cross the network and lie on disk: a strict, versioned frame around packed arrays; no pickle.

    magic (6) | version (2) | length of header (4) | length of payload (8) | header | payload | sha256 (32)

Lengths are little-endian.  The header is JSON in one canonical spelling (sorted keys, no spaces, ASCII), so every
message has exactly one encoding.  The payload is what ``codecs.wire.pack`` writes; the header's ``layout`` says what
is in it.  The digest finds damage; it is no signature: who sent a message is for TLS and node authentication to say.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from medvfm_jax.federated.core.errors import BadFederation

VERSION = 1
HEADER_LIMIT = 2**20  # bytes; a layout of a thousand leaves takes about a tenth
_MAGIC = b"MedVFM"
_PREFIX = struct.Struct("<6sHIQ")
_DIGEST = hashlib.sha256().digest_size
OVERHEAD = _PREFIX.size + _DIGEST

KINDS = (
    "hello", "here", "work", "done", "failed", "server", "site",
    "join", "keys", "deal", "dealt", "reveal", "revealed", "secrets",
)  # fmt: skip


class BadMessage(BadFederation):
    """Bytes that are not the message that was expected; nothing of them was used."""


class Header(NamedTuple):
    """What a message is about; every field is always sent.

    Attributes:
        kind: "hello" and "work" go to a site, "here", "done" and "failed" come back; "server", "site" and "secrets"
            lie on disk; for the others see ``secure_messages``.
        federation: digest of what all nodes must agree on (`Agreement`), 64 hexadecimal digits.
        run: 32 hexadecimal digits, drawn once per run.
        round: of the server.
        node: number of the receiving or answering node.
        site: its name, "" where the message is to no site in particular.
        client: its row, -1 for none.
        accepted: the last round whose update of this site entered the aggregate, -1 for none.
        reason: why a site could not do its work, a word of ``site.REASONS``, else "".
        layout: names, dtypes and shapes of the payload, see ``layouts.layout``.
    """

    kind: str
    federation: str
    run: str
    round: int = 0
    node: int = 0
    site: str = ""
    client: int = -1
    accepted: int = -1
    reason: str = ""
    layout: Sequence = ()


class Message(NamedTuple):
    """A message whose frame and header have been checked; its payload is not decoded yet.

    Attributes:
        header: checked field by field.
        payload: bytes, as ``codecs.wire.pack`` writes them.
    """

    header: Header
    payload: bytes


def encode(header: Header, payload: bytes = b"") -> bytes:
    """Frame a header and a payload as the bytes of a message.

    Args:
        header: of the message.
        payload: packed arrays, as the header's layout says.

    Returns:
        The bytes, with a SHA-256 digest at the end.

    Raises:
        BadMessage: a header that a receiver would refuse, or one above 1 MiB.
    """
    contents = list(header.layout) if type(header.layout) is tuple else header.layout
    fields = header._asdict() | {"layout": contents}
    _check_header(fields)
    text = _canonical(fields)
    if len(text) > HEADER_LIMIT:
        raise BadMessage(f"The header has {len(text)} bytes; at most {HEADER_LIMIT} are sent.")
    frame = _PREFIX.pack(_MAGIC, VERSION, len(text), len(payload)) + text + payload
    return frame + hashlib.sha256(frame).digest()


def decode(data: bytes, payload_limit: int) -> Message:
    """Open the bytes of a message: lengths are checked before anything is copied, the digest before anything is read.

    Args:
        data: received or read.
        payload_limit: largest payload accepted, in bytes.

    Returns:
        The header and the payload.

    Raises:
        BadMessage: bytes that are too many, too few, damaged, of another format version, or whose header this package
            would not have written.
    """
    if len(data) > OVERHEAD + HEADER_LIMIT + payload_limit:
        raise BadMessage(
            f"A message of {len(data)} bytes was refused unread; the payload may have {payload_limit} bytes here."
        )
    if len(data) < OVERHEAD:
        raise BadMessage(f"A message of {len(data)} bytes was received; the shortest has {OVERHEAD}.")
    magic, version, header_length, payload_length = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise BadMessage("The bytes received are not a message of this package.")
    if version != VERSION:
        raise BadMessage(
            f"A message of format {version} was received and this package reads format {VERSION}; "
            "install the same version of medvfm-jax on every node."
        )
    if header_length > HEADER_LIMIT or payload_length > payload_limit:
        raise BadMessage(
            f"A message declares {header_length} bytes of header and {payload_length} of payload; at most "
            f"{HEADER_LIMIT} and {payload_limit} are read."
        )
    if len(data) != OVERHEAD + header_length + payload_length:
        raise BadMessage(
            f"A message declares {OVERHEAD + header_length + payload_length} bytes and has {len(data)}; "
            "it was cut or lengthened on the way."
        )
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST]).digest() != view[-_DIGEST:]:
        raise BadMessage("A message was damaged on the way: its digest does not fit.")
    start = _PREFIX.size + header_length
    header = _read_header(bytes(view[_PREFIX.size : start]))
    return Message(header, bytes(view[start:-_DIGEST]))


def expect(header: Header, **wanted: Any) -> None:
    """Compare fields of a header with what they must be; raises BadMessage for the first that differs."""
    for field, value in wanted.items():
        found = getattr(header, field)
        if found != value:
            raise BadMessage(_SENTENCES[field].format(found=found, wanted=value))


_SENTENCES = {
    "kind": "A message of kind '{found}' was received where '{wanted}' was expected.",
    "federation": "The message belongs to another federation ({found:.12}, here {wanted:.12}): model, algorithm, codec "
    "or settings differ between the nodes.",
    "run": "The message belongs to another run ({found:.12}, this is {wanted:.12}).",
    "round": "The message belongs to round {found}, this is round {wanted}: it is late or was replayed.",
    "node": "The message names node {found} and came by way of node {wanted}.",
    "site": "The message names site '{found}', this is '{wanted}'.",
    "client": "The message names client {found}, this is client {wanted}.",
    "accepted": "The message speaks of round {found} as the last accepted one, it is {wanted}.",
    "reason": "The message gives the reason '{found}' where '{wanted}' was expected.",
}


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read_header(text: bytes) -> Header:
    try:
        fields = json.loads(text)
        canonical = isinstance(fields, dict) and _canonical(fields) == text
    except (ValueError, RecursionError) as error:
        raise BadMessage("The header of a message is not JSON that this package writes.") from error
    if not canonical:
        raise BadMessage("The header of a message is not in the one spelling this package writes.")
    _check_header(fields)
    return Header(**fields)


def _number(low: int, high: int) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and low <= x <= high


def _text(pattern: str) -> Callable[[Any], bool]:
    return lambda x: type(x) is str and re.fullmatch(pattern, x, re.ASCII) is not None


SITE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_RULES: dict[str, Callable[[Any], bool]] = {
    "kind": lambda x: x in KINDS,
    "federation": _text(r"[0-9a-f]{64}"),
    "run": _text(r"[0-9a-f]{32}"),
    "round": _number(0, 2**31 - 1),
    "node": _number(0, 2**64 - 1),
    "site": _text(rf"|{SITE_NAME}"),
    "client": _number(-1, 2**31 - 1),
    "accepted": _number(-1, 2**31 - 1),
    "reason": _text(r"[a-z_]{0,32}"),
    "layout": lambda x: type(x) is list and all(_is_entry(entry) for entry in x),
}


def _is_entry(entry: Any) -> bool:
    return (
        type(entry) is list
        and [type(part) for part in entry] == [str, str, list]
        and all(type(n) is int and n >= 0 for n in entry[2])
    )


def _check_header(fields: dict[str, Any]) -> None:
    if fields.keys() != _RULES.keys():
        odd = sorted(fields.keys() ^ _RULES.keys())
        raise BadMessage(f"The header of a message has other fields than expected, for example {odd[0]:.40}.")
    for name, holds in _RULES.items():
        if not holds(fields[name]):
            raise BadMessage(f"The field '{name}' of a message has an impossible value.")
