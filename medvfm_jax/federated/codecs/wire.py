"""What a message costs on the wire: bits from its static shapes, and the packed bytes themselves.

A codec's message is a pytree of three kinds of parts:

* an array: every element costs the bits of its dtype;
* ``Codes``: unsigned integers of a stated width, such as signs (1), int4 levels (4) or indices (ceil(log2 d));
* ``Known``: what the receiver already holds, for instance the memory of EF21.  It is part of the message so that
  ``decode`` stays a pure function of the message, and it costs nothing.

So one pair ``pack`` / ``unpack`` serves every codec and every combination of codecs, and the number of bits is
known before anything is compressed.  Arrays are little-endian; codes are written most significant bit first.
Every part is padded to a whole byte: 0 <= 8 len(pack(message)) - message_bits(message) < 8 (number of parts).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax import Array

from medvfm_jax.federated.core.records import Codec, Tree
from medvfm_jax.types import MedvfmError

_CHUNK = 2**16  # codes expanded to bits at a time; a multiple of 8, so that every chunk is whole bytes


class WireError(MedvfmError):
    """Bytes that are not the message that was expected, or a message that does not fit its own widths."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """Unsigned integers that are sent in fewer bits than their dtype has.

    Attributes:
        values: integers (...) below 2**width.
        width: bits of each; 0 means that only 0 is possible.
    """

    values: Array  # any shape, of code_dtype(width)
    width: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
    """A tree that sender and receiver both hold already: 0 bits.

    Attributes:
        values: pytree of arrays.
    """

    values: Tree


def code_dtype(width: int) -> np.dtype:
    """Width in bits (0..32) -> the smallest unsigned dtype that holds it."""
    return np.dtype(np.uint8 if width <= 8 else np.uint16 if width <= 16 else np.uint32)


def index_width(size: int) -> int:
    """Bits of an index into ``size`` places: ceil(log2 size)."""
    return max(size - 1, 0).bit_length()


def message_bits(message: Tree) -> int:
    """Bits of one message.

    Args:
        message: pytree of arrays, tracers or shapes (``jax.eval_shape``), with ``Codes`` and ``Known`` parts.

    Returns:
        Bits, a Python int.
    """
    return sum(_part_bits(part) for part in _parts(message))


def message_shapes(codec: Codec, like: Tree) -> Tree:
    """Shapes of the message for one update of the shapes of ``like``, as ``unpack`` wants them.

    Args:
        codec: any codec.
        like: pytree of arrays or shapes, the update of one client.

    Returns:
        Pytree of shapes and dtypes.
    """

    def first(update: Tree) -> Tree:
        return codec.encode(jax.random.key(0), codec.init(update), update)[0]

    return jax.eval_shape(first, like)


def bits(codec: Codec, like: Tree) -> int:
    """Bits of one message of ``codec`` for an update of the shapes of ``like``; nothing is computed.

    Args:
        codec: any codec.
        like: pytree of arrays or shapes, the update of one client.

    Returns:
        Bits of a message, from static shapes and dtypes.
    """
    return message_bits(message_shapes(codec, like))


def pack(message: Tree) -> bytes:
    """One client's message as bytes.

    Args:
        message: pytree of concrete arrays, with ``Codes`` and ``Known`` parts.

    Returns:
        The bytes, without those of ``Known`` parts.

    Raises:
        WireError: a code does not fit its width.
    """
    return b"".join(_pack_part(part) for part in _parts(message))


def unpack(data: bytes, shapes: Tree, known: Sequence[Tree] = ()) -> Tree:
    """Bytes back to a message.

    Args:
        data: from ``pack``.
        shapes: from ``message_shapes``.
        known: the receiver's own values of the ``Known`` parts, in order.

    Returns:
        The message with numpy arrays, equal to the packed one in every bit.

    Raises:
        WireError: the length is not that of such a message, or the number of known values is another one.
    """
    parts, structure = jax.tree.flatten(shapes, is_leaf=_is_part)
    expected = sum(_part_bytes(part) for part in parts)
    if len(data) != expected:
        raise WireError(f"a message of {len(data)} bytes was received where {expected} bytes were expected")
    wanted = sum(isinstance(part, Known) for part in parts)
    if wanted != len(known):
        raise WireError(f"the message refers to {wanted} known values, {len(known)} were given")
    held, start, read = iter(known), 0, []
    for part in parts:
        stop = start + _part_bytes(part)
        read.append(Known(next(held)) if isinstance(part, Known) else _unpack_part(data[start:stop], part))
        start = stop
    return jax.tree.unflatten(structure, read)


def _is_part(node: Tree) -> bool:
    return isinstance(node, Codes | Known)


def _parts(message: Tree) -> list[Tree]:
    return jax.tree.leaves(message, is_leaf=_is_part)


def _part_bits(part: Tree) -> int:
    if isinstance(part, Known):
        return 0
    if isinstance(part, Codes):
        return math.prod(part.values.shape) * part.width
    return math.prod(part.shape) * part.dtype.itemsize * 8


def _part_bytes(part: Tree) -> int:
    return -(-_part_bits(part) // 8)


def _pack_part(part: Tree) -> bytes:
    if isinstance(part, Known):
        return b""
    if not isinstance(part, Codes):
        return np.asarray(part).tobytes()
    flat = np.asarray(part.values).ravel()
    if flat.size and int(flat.max()) >> part.width:
        raise WireError(f"a code is {int(flat.max())}, which does not fit in {part.width} bits")
    chunks = (flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK))
    return b"".join(_codes_to_bytes(chunk, part.width) for chunk in chunks)


def _codes_to_bytes(codes: np.ndarray, width: int) -> bytes:
    four_bytes = codes.astype(">u4").view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(four_bytes, axis=1)[:, 32 - width :]).tobytes()


def _unpack_part(data: bytes, part: Tree) -> Tree:
    if not isinstance(part, Codes):
        return np.frombuffer(data, part.dtype).reshape(part.shape)
    count, width = math.prod(part.values.shape), part.width
    codes = np.zeros(count, part.values.dtype)
    for i in range(0, count if width else 0, _CHUNK):
        n = min(_CHUNK, count - i)
        piece = data[i * width // 8 : -(-(i + n) * width // 8)]
        codes[i : i + n] = _bytes_to_codes(piece, n, width)
    return Codes(codes.reshape(part.values.shape), width)


def _bytes_to_codes(data: bytes, count: int, width: int) -> np.ndarray:
    wide = np.zeros((count, 32), np.uint8)
    wide[:, 32 - width :] = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width).reshape(
        count, width
    )
    return np.packbits(wide, axis=1).view(">u4")[:, 0]
