"""PNG files with 16 bits per colour, which Pillow would cut down to 8.

The format: W3C, Portable Network Graphics (PNG) Specification, Third Edition, sections 5 and 9 (filters).
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.image import BadImage

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 4: 2, 6: 4}  # colour types RGB, grey + alpha, RGB + alpha
_BYTES = 2


def is_deep_colour_png(path: Path) -> bool:
    """Whether the file is a PNG with 16 bits per sample and more than one channel, not interlaced."""
    with open(path, "rb") as file:
        head = file.read(33)
    if len(head) < 33 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        return False
    _, _, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", head[16:29])
    return depth == 16 and colour in _CHANNELS and interlace == 0


def read_deep_png(path: Path) -> NDArray[np.uint16]:
    """File -> (H, W, C) without alpha (C = 1 or 3). Raises BadImage for a truncated or damaged file."""
    data = path.read_bytes()
    width, height, colour, packed = _chunks(path, data)
    channels = _CHANNELS[colour]
    stride = width * channels * _BYTES
    inflate = zlib.decompressobj()
    try:
        # Never more than the header promises, so that a small file cannot fill the memory.
        lines = inflate.decompress(packed, (stride + 1) * height)
    except zlib.error as error:
        raise BadImage(f"{path} is damaged ({error}); get the file again.") from error
    if len(lines) < (stride + 1) * height:
        raise BadImage(f"{path} is truncated; get the file again.")
    rows = np.frombuffer(lines, np.uint8).reshape(height, stride + 1)
    pixels = _unfilter(path, rows[:, 0], rows[:, 1:], channels * _BYTES)
    array = pixels.reshape(height, width, channels, _BYTES).view(">u2")[..., 0].astype(np.uint16)
    return array[..., : channels - (colour in (4, 6))]


def _chunks(path: Path, data: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, colour type, concatenated IDAT; checks the CRC of each chunk."""
    width, height, _, colour = struct.unpack(">IIBB", data[16:26])
    packed, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        crc = data[at + 8 + length : at + 12 + length]
        if len(crc) < 4:
            break
        if zlib.crc32(kind + body) != struct.unpack(">I", crc)[0]:
            raise BadImage(f"{path} is damaged (wrong checksum); get the file again.")
        if kind == b"IDAT":
            packed.append(body)
        if kind == b"IEND":
            return width, height, colour, b"".join(packed)
        at += 12 + length
    raise BadImage(f"{path} is truncated; get the file again.")


def _unfilter(path: Path, kinds: NDArray, rows: NDArray, step: int) -> NDArray[np.uint8]:
    """Undo the five line filters; ``step`` is the number of bytes of a pixel."""
    out = np.zeros((len(rows) + 1, rows.shape[1] + step), np.uint8)  # one line above, one pixel to the left
    for y, (kind, row) in enumerate(zip(kinds, rows), start=1):
        above = out[y - 1, step:]
        if kind == 0:
            out[y, step:] = row
        elif kind == 1:  # Sub: a running sum along the line, per byte of a pixel, modulo 256
            out[y, step:] = np.cumsum(row.reshape(-1, step), axis=0, dtype=np.uint8).reshape(-1)
        elif kind == 2:
            out[y, step:] = row + above
        elif kind in (3, 4):
            _serial(out[y], out[y - 1], row, step, average=kind == 3)
        else:
            raise BadImage(f"{path} is damaged (line filter {kind}); get the file again.")
    return out[1:, step:]


def _serial(line: NDArray, above: NDArray, row: NDArray, step: int, *, average: bool) -> None:
    """The Average and Paeth filters, where each pixel needs the one before; all bytes of a pixel at once."""
    up, left = above.astype(np.int16), np.zeros(step, np.int16)
    for at in range(step, len(line), step):
        b, c = up[at : at + step], up[at - step : at]
        if average:
            guess = (left + b) >> 1
        else:
            to_left, to_up, to_corner = np.abs(b - c), np.abs(left - c), np.abs(left + b - 2 * c)
            guess = np.where(
                (to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, b, c)
            )
        left = (row[at - step : at - step + step] + guess) & 255
        line[at : at + step] = left
