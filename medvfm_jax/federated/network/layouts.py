"""What is in a payload: names, kinds and shapes of its parts, checked before a byte of it is read.

A payload is a pytree of arrays and of the codecs' ``Codes``; both sides know its shapes beforehand, so its length is
known too, and nothing that a sender declares decides how much memory is taken.
"""

import hashlib
import json
from typing import Any

import jax
import numpy as np

from medvfm_jax.federated.codecs.wire import Codes, Known, message_bits, pack, unpack
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.personal_parts import leaf_name
from medvfm_jax.federated.core.records import Tree
from medvfm_jax.federated.network.messages import BadMessage


def layout(tree: Tree) -> list[list[Any]]:
    """Arrays or shapes -> [[name "a/b", dtype or "codesN" for N bits, shape], ...] in the order of the payload.

    Raises BadFederation for a codec whose receiver has to remember every sender (``Known`` parts).
    """
    return [[leaf_name(path), *_describe(part)] for path, part in _parts(tree)]


def payload_bytes(shapes: Tree) -> int:
    """Exact length of a payload of these shapes."""
    return sum(-(-message_bits(part) // 8) for _, part in _parts(shapes))


def digest(record: Any) -> str:
    """JSON-able record -> 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_payload(payload: bytes, found: list[list[Any]], shapes: Tree, finite: bool = True) -> Tree:
    """Payload of layout ``found`` -> the tree ``shapes`` with numpy arrays.

    Raises BadMessage naming the first part whose name, kind, shape or value is not what it must be.
    """
    _compare(found, layout(shapes))
    if len(payload) != payload_bytes(shapes):
        raise BadMessage(f"The payload has {len(payload)} bytes where {payload_bytes(shapes)} were expected.")
    tree = unpack(payload, shapes)
    check_values(tree, finite)
    return tree


def write_payload(tree: Tree) -> bytes:
    """Tree of concrete arrays and codes -> payload."""
    return pack(jax.device_get(tree))


def check_values(tree: Tree, finite: bool = True) -> None:
    """Raises BadMessage naming the first array that is not finite, or holds booleans other than 0 and 1."""
    for path, part in _parts(tree):
        if isinstance(part, Codes):
            continue
        values = np.asarray(part)
        if finite and jax.numpy.issubdtype(values.dtype, jax.numpy.inexact) and not np.isfinite(values).all():
            raise BadMessage(f"The part '{leaf_name(path)}' holds values that are not finite.")
        if values.dtype == bool and values.size and values.view(np.uint8).max() > 1:
            raise BadMessage(f"The part '{leaf_name(path)}' holds booleans that are neither 0 nor 1.")


def _parts(tree: Tree) -> list[tuple]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Codes | Known))


def _describe(part: Tree) -> list[Any]:
    if isinstance(part, Known):
        raise BadFederation(
            "EF21 and DIANA make the receiver remember every sender, which the network does not do; "
            "use feedback.error_feedback with the same codec."
        )
    if isinstance(part, Codes):
        return [f"codes{part.width}", list(part.values.shape)]
    return [np.dtype(part.dtype).name, list(part.shape)]


def _compare(found: list[list[Any]], wanted: list[list[Any]]) -> None:
    if found == wanted:
        return
    for (name, *what), (own_name, *own) in zip(found, wanted):
        if name != own_name:
            raise BadMessage(f"The payload holds '{name:.80}' where '{own_name}' was expected.")
        if what != own:
            raise BadMessage(
                f"The part '{name}' is {what[0]:.20} of shape {_short(what[1])}, expected {own[0]} of shape {own[1]}."
            )
    raise BadMessage(f"The payload has {len(found)} parts where {len(wanted)} were expected.")


def _short(shape: list[int]) -> str:
    return str(shape[:8]) if len(shape) <= 8 else f"{shape[:8]} and {len(shape) - 8} more axes"
