"""How much a Deflate stream in a file becomes, found in small pieces: a few bytes of it can fill the memory."""

import zlib
from pathlib import Path

from medvfm_jax.images.decoding import decoding

_PIECE = 1 << 20
RAW = -zlib.MAX_WBITS  # a stream without the header and the checksum of zlib


def inflates_beyond(
    path: Path, kind: str, most: int, start: int, length: int | None = None, wbits: int = zlib.MAX_WBITS
) -> bool:
    """Whether the stream at byte ``start`` becomes more than ``most`` bytes; no further than that is looked.

    kind: of file, for the error. length: bytes of the stream in the file at most, None for all that follow.
    Raises BadImage for what cannot be inflated.
    """
    inflate, size = zlib.decompressobj(wbits), 0
    with decoding(path, kind), open(path, "rb") as file:
        file.seek(start)
        ahead = path.stat().st_size if length is None else length
        left = file.read(min(_PIECE, ahead))
        while left and not inflate.eof and size <= most:
            ahead -= 0 if inflate.unconsumed_tail else len(left)
            size += len(inflate.decompress(left, _PIECE))
            left = inflate.unconsumed_tail or file.read(min(_PIECE, ahead))
    return size > most
