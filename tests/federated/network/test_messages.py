"""The frame is strict: one encoding per message, and everything else is refused in one sentence, never a crash."""

import hashlib
import json
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvfm_jax.federated.network.messages import (
    HEADER_LIMIT,
    KINDS,
    OVERHEAD,
    BadMessage,
    Header,
    Message,
    decode,
    encode,
    expect,
)

HEADER = Header("work", "ab" * 32, "cd" * 16, 3, 2**64 - 1, "site-1", 0, 2, "", [["w/a", "float32", [2, 3]]])
GOOD = encode(HEADER, b"payload")
LIMIT = 100


def frame(header: bytes, payload: bytes = b"", magic: bytes = b"MedVFM", version: int = 1) -> bytes:
    """A frame with a valid digest around any header."""
    data = struct.pack("<6sHIQ", magic, version, len(header), len(payload)) + header + payload
    return data + hashlib.sha256(data).digest()


def with_field(**fields: object) -> bytes:
    record = HEADER._asdict() | fields
    return frame(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def refused(data: bytes, words: str, limit: int = LIMIT) -> None:
    with pytest.raises(BadMessage, match=words) as error:
        decode(data, limit)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**64 - 1),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.binary(max_size=LIMIT),
)
def test_what_was_encoded_is_decoded(kind: str, round_: int, node: int, site: str, payload: bytes) -> None:
    header = Header(kind, "0" * 64, "f" * 32, round_, node, site, layout=[["x", "codes4", []]])
    assert decode(encode(header, payload), LIMIT) == Message(header, payload)


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(data, LIMIT)


@given(st.binary(max_size=200))
def test_random_headers_with_a_valid_digest_are_refused(header: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(frame(header), LIMIT)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.sampled_from(Header._fields), _JSON)
def test_a_field_of_any_json_is_accepted_only_if_it_obeys_the_rules(field: str, value: object) -> None:
    """Either it is refused or encoding what was read gives the same bytes: nothing is read in two ways."""
    data = with_field(**{field: value})
    try:
        message = decode(data, LIMIT)
    except BadMessage:
        return
    assert encode(*message) == data


def test_every_truncation_and_every_flipped_bit_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(BadMessage):
            decode(GOOD[:length], LIMIT)
    for bit in range(8 * len(GOOD)):
        damaged = bytearray(GOOD)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadMessage):
            decode(bytes(damaged), LIMIT)
    refused(GOOD + b"\0", "cut or lengthened")
    assert decode(GOOD, LIMIT).payload == b"payload"


def test_declared_sizes_take_no_memory() -> None:
    """Four declared gigabytes and more are refused by looking at 20 bytes."""
    for lengths in ((2**32 - 1, 0), (10, 2**63), (2**32 - 1, 2**64 - 1)):
        data = struct.pack("<6sHIQ", b"MedVFM", 1, *lengths) + bytes(50)
        tracemalloc.start()
        refused(data, "declares")
        assert tracemalloc.get_traced_memory()[1] < 2**16
        tracemalloc.stop()


def test_a_message_longer_than_any_expected_one_is_not_read() -> None:
    refused(bytes(OVERHEAD + HEADER_LIMIT + LIMIT + 1), "refused unread")
    refused(encode(HEADER, bytes(LIMIT + 1)), "declares")
    assert len(decode(encode(HEADER, bytes(LIMIT)), LIMIT).payload) == LIMIT
    with pytest.raises(BadMessage, match="at most"):
        encode(HEADER._replace(layout=[["x" * HEADER_LIMIT, "float32", []]]))


def test_other_formats_are_named() -> None:
    refused(frame(b"{}", magic=b"pickle"), "not a message of this package")
    refused(frame(b"{}", version=2), "format 2 .* reads format 1")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b"[1]", "one spelling"),
        (b'{"a": 1}', "one spelling"),
        (b'{"a":1,"a":2}', "one spelling"),
        (b'{"b":1,"a":2}', "one spelling"),
        (b"{}", "other fields"),
        (b'{"kind":"work"}', "other fields"),
    ],
)
def test_headers_that_are_not_ours(header: bytes, words: str) -> None:
    refused(frame(header), words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "exec"),
        ("federation", "AB" * 32),
        ("federation", "ab" * 31),
        ("run", "../../etc/passwd"),
        ("run", "cd" * 16 + "\n"),
        ("round", -1),
        ("round", 1.0),
        ("round", True),
        ("round", 2**31),
        ("node", -1),
        ("node", 2**64),
        ("site", "../x"),
        ("site", "a" * 65),
        ("site", "Klinikum Süd"),
        ("client", None),
        ("accepted", -2),
        ("reason", "Patient 4711 missing"),
        ("layout", {}),
        ("layout", [["w", "float32", [-1]]]),
        ("layout", [["w", "float32"]]),
        ("layout", [["w", 4, [1]]]),
        ("layout", [["w", "float32", [True]]]),
    ],
)
def test_impossible_values(field: str, value: object) -> None:
    refused(with_field(**{field: value}), f"'{field}'")
    with pytest.raises(BadMessage, match=field):
        encode(HEADER._replace(**{field: value}))


def test_a_field_too_many_or_too_few() -> None:
    record = HEADER._asdict()
    for changed in (record | {"zeal": 1}, {k: v for k, v in record.items() if k != "run"}):
        refused(frame(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()), "other fields")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"round": 4}, "belongs to round 3, this is round 4: it is late or was replayed"),
        ({"run": "ee" * 16}, "another run .cdcdcdcdcdcd, this is eeeeeeeeeeee"),
        ({"federation": "0" * 64}, "another federation"),
        ({"node": 5}, "by way of node 5"),
        ({"site": "site-2"}, "names site 'site-1', this is 'site-2'"),
        ({"kind": "done"}, "kind 'work' .* 'done'"),
        ({"client": 1}, "names client 0, this is client 1"),
    ],
)
def test_what_is_expected_is_compared_field_by_field(wanted: dict, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        expect(HEADER, **wanted)
    expect(HEADER, kind="work", round=3)
