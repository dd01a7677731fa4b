"""PNG files with 16 bits per colour, which Pillow cannot write, with every line filter and interlaced."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

# Adam7: first row, first column, row step, column step of each pass (PNG specification, section 8.2).
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def deep_png(
    array: NDArray[np.uint16], filters: tuple[int, ...] = (0, 1, 2, 3, 4), *, interlaced: bool = False
) -> bytes:
    """(H, W, C) uint16 -> a PNG whose line y (of a pass) uses filter ``filters[y % len(filters)]``."""
    height, width, channels = array.shape
    parts = [array[r::down, c::right] for r, c, down, right in _PASSES] if interlaced else [array]
    packed = b"".join(_filtered(part, filters) for part in parts if part.size)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b"")]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(array: NDArray[np.uint16], filters: tuple[int, ...]) -> bytes:
    height, _, channels = array.shape
    step = 2 * channels
    lines = array.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    packed = []
    above = np.zeros(lines.shape[1], int)
    for y, line in enumerate(lines):
        left = np.concatenate([np.zeros(step, int), line[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        kind = filters[y % len(filters)]
        guess = [0, left, above, (left + above) // 2, _paeth(left, above, corner)][kind]
        packed.append(bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes())
        above = line
    return b"".join(packed)


def _paeth(left: NDArray, above: NDArray, corner: NDArray) -> NDArray:
    base = left + above - corner
    to_left, to_above, to_corner = abs(base - left), abs(base - above), abs(base - corner)
    return np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
