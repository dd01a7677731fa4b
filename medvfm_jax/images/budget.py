"""How many bytes an image may take in memory, checked on its header before anything is decoded."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from medvfm_jax.images.image import BadImage

MAX_BYTES = 2 << 30  # a volume of 1024 × 1024 × 512 voxels in float32
VARIABLE = "MEDVFM_MAX_IMAGE_GIB"


def budget(max_bytes: int | None = None) -> int:
    """Bytes one image may take: as given, else MEDVFM_MAX_IMAGE_GIB, else MAX_BYTES. Raises BadImage."""
    if max_bytes is not None:
        return max_bytes
    text = os.environ.get(VARIABLE)
    if not text:
        return MAX_BYTES
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not 0 < gib < 1 << 20:
        raise BadImage(f"{VARIABLE} is '{text}'; expected a number of GiB, such as 4.")
    return int(gib * (1 << 30))


def check_size(path: Path, shape: Sequence[int], dtype: DTypeLike, max_bytes: int) -> None:
    """Refuse an array too large to hold, by all its axes and its type in memory, before it is allocated.

    Raises BadImage, which names the variable that raises the limit.
    """
    # Whole numbers of any length: a product of eight axes of a damaged header overflows 64 bits.
    size = math.prod(map(int, shape)) * np.dtype(dtype).itemsize
    if size <= max_bytes:
        return
    raise BadImage(
        f"{path} needs {_gib(size)} of memory ({' × '.join(map(str, shape))}, {np.dtype(dtype)}); at most "
        f"{_gib(max_bytes)} are read at once. Crop it, or raise the limit with {VARIABLE}={math.ceil(size / 2**30)}."
    )


def check_extent(path: Path, grid: Sequence[int]) -> None:
    """Refuse an image with nothing in it: fewer than 2 pixels along two axes of (H, W) or (X, Y, Z)."""
    if min(grid) < 1 or sorted(grid)[-2] < 2:
        raise BadImage(
            f"{path} is {' × '.join(map(str, grid))} pixels, too small for an image; "
            "expected at least 2 pixels along two axes."
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size < 1 << 70 else "endlessly much"
