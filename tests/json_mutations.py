"""Damaged and hostile variants of a JSON file: of its tree (types, names, depth) and of its bytes."""

import copy
import json
import random
from typing import Any

_DEEP: Any = []
for _ in range(200):
    _DEEP = [_DEEP]
# What may stand where something else was expected; numbers that overflow, names that are paths.
STRANGERS: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "../../x",
    "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "gs://x", "n" * 5000, [], [1], [None], {}, {"a": 1}, [[]], _DEEP,
)  # fmt: skip
BYTES = (b"\xff", b"\x00", b"\xc3", b"{", b"]", b'"', b"NaN", b"1e999", b",", b"\n", b"[" * 3000)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all parts of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, part in parts for inner in places(part, (*path, key)))]


def mutated_tree(value: Any, rng: random.Random, where: list[tuple]) -> Any:
    """A copy with one part of it replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    path = rng.choice(where)
    if not path:
        return copy.deepcopy(rng.choice(STRANGERS))
    *above, key = path
    parent = value
    for step in above:
        parent = parent[step]
    kind = rng.random()
    if kind < 0.7:
        parent[key] = copy.deepcopy(rng.choice(STRANGERS))
    elif kind < 0.85 and isinstance(parent, dict):
        del parent[key]
    elif isinstance(parent, dict):
        parent[str(rng.choice(("", "../x", "n" * 300, "\ud800")))] = parent.pop(key)
    else:
        parent.append(copy.deepcopy(parent[key]))
    return value


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """The same bytes cut off, with one changed, or with others in between."""
    at = rng.randrange(len(data) + 1)
    kind = rng.random()
    if kind < 0.3:
        return data[:at]
    if kind < 0.6 and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    return data[:at] + rng.choice(BYTES) + data[at + rng.randrange(3) :]


def variants(value: Any, count: int, seed: int):
    """``count`` files that were made out of one."""
    rng, where = random.Random(seed), places(value)
    good = json.dumps(value).encode()
    for _ in range(count):
        if rng.random() < 0.7:
            yield json.dumps(mutated_tree(value, rng, where)).encode()
        else:
            yield mutated_bytes(good, rng)
