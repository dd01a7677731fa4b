"""Pictures cut into squares that a model sees one at a time, enlarged, and their predictions blended.

A tile of N pixels fills the model's input, so that a logit covers N / 64 pixels where there are 64 along a side,
whatever the size of the picture.  Intensities are scaled over the whole picture: a tile of nothing but background,
scaled on its own, would be nothing but noise.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.frame import Limits, filter_of, frame_of, normalise, unit_channels
from medvfm_jax.images.sampling import resize
from medvfm_jax.images.windows import blended, starts
from medvfm_jax.types import ModelSpec

Corner = tuple[int, int]  # row and column of a tile's first pixel


def side_by_side(shape: tuple[int, int], tile: int) -> Iterator[Corner]:
    """Corners of tiles that cover a picture (H, W), as few as do, so evenly spaced that none reaches beyond it."""
    return itertools.product(*(starts(n, tile, 0.0) for n in shape))


def part(array: NDArray, corner: Corner, tile: int) -> NDArray:
    """(H, W, ...) -> the tile that starts at ``corner``, as much of it as there is."""
    return array[tuple(slice(start, start + tile) for start in corner)]


def limits_of(spec: ModelSpec, unit: NDArray[np.float32]) -> Limits | None:
    """Least and greatest intensity that any tile of a picture (H, W, C) in 0..1 shows the model once it is resized.

    None for models that do not scale intensities by them.
    """
    if spec.normalise != "minmax":
        return None
    low, high = np.inf, -np.inf
    for corner in side_by_side(unit.shape[:2], spec.tile):
        one = part(unit, corner, spec.tile)
        seen = resize(one, *frame_of(spec, *one.shape[:2]).scaled, filter_of(spec))
        low, high = min(low, float(seen.min())), max(high, float(seen.max()))
    return low, high


def levelled(spec: ModelSpec, picture: NDArray) -> NDArray[np.float32]:
    """Picture (H, W, C) -> (H, W, 1 or 3) in 0..1; ``preprocess`` takes limits 0 and 1 for any part of it."""
    unit = unit_channels(picture)
    limits = limits_of(spec, unit)
    return unit if limits is None else np.clip(normalise(spec, unit, limits), 0, 1)


def tiled(
    spec: ModelSpec,
    picture: NDArray,
    overlap: float,
    predict: Callable[[NDArray[np.float32], Limits | None], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Picture (H, W, C) -> (K, H, W): at each pixel the mean of the predictions of its tiles, see ``images.windows``.

    predict: tile (h, w, 1 or 3) in 0..1, and limits for ``preprocess`` -> (K, h, w).  A picture that is one tile gets
    its prediction bit by bit.  overlap: share of a tile that the next one covers too, at least.
    """
    unit = unit_channels(picture)
    limits = limits_of(spec, unit)

    def at(corner: tuple[int, int, int]) -> NDArray[np.float32]:
        return predict(part(unit, corner[1:], spec.tile), limits)[:, None]

    (found,) = blended((1, *unit.shape[:2]), (1, spec.tile, spec.tile), overlap, at)
    return found
