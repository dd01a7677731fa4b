"""PNG files with 16 bits per colour, which Pillow cannot write, with every line filter."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def deep_png(array: NDArray[np.uint16], filters: tuple[int, ...] = (0, 1, 2, 3, 4)) -> bytes:
    """(H, W, C) uint16 -> a PNG whose line y uses filter ``filters[y % len(filters)]``."""
    height, width, channels = array.shape
    step = 2 * channels
    lines = array.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    packed = b""
    above = np.zeros(lines.shape[1], int)
    for y, line in enumerate(lines):
        left = np.concatenate([np.zeros(step, int), line[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        kind = filters[y % len(filters)]
        guess = [0, left, above, (left + above) // 2, _paeth(left, above, corner)][kind]
        packed += bytes([kind]) + ((line - guess) % 256).astype(np.uint8).tobytes()
        above = line
    colour = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(packed))
        + _chunk(b"IEND", b"")
    )


def _paeth(left: NDArray, above: NDArray, corner: NDArray) -> NDArray:
    base = left + above - corner
    to_left, to_above, to_corner = abs(base - left), abs(base - above), abs(base - corner)
    return np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
