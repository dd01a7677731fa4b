"""Windows that slide over a volume with overlap, and their predictions blended into slices, in constant memory.

Every window counts most in its middle, where a network sees most around a voxel: weights are a Gaussian whose
deviation is an eighth of the window's side, as in Isensee et al. 2021, nnU-Net, supplementary note 2.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError

_DEVIATION = 1 / 8  # of a window's side
_LEAST = 1e-3  # weight of a window's border: a voxel that lies in one window only keeps its digits

OVERLAP = 0.5  # of windows, unless somebody says otherwise

Shape = tuple[int, int, int]


class BadOverlap(MedvfmError, ValueError):
    """Windows that would never move on, or leave gaps."""


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of windows that cover ``length`` voxels along one axis, evenly spaced, the first 0.

    overlap: share of a window that the next one covers too, at least; 0 <= overlap < 1. Where a window is longer than
    the axis there is one.  Raises BadOverlap.
    """
    if not 0 <= overlap < 1:
        raise BadOverlap(f"overlap is {overlap}; expected at least 0 and below 1.")
    last = max(0, length - window)
    step = max(1, int(window * (1 - overlap)))
    return np.linspace(0, last, -(-last // step) + 1).round().astype(int).tolist()


def profile(length: int, window: int) -> NDArray[np.float32]:
    """Weights of a window along one axis (window,); all 1 if the window covers the axis."""
    if window >= length:
        return np.ones(window, np.float32)
    away = (np.arange(window) - (window - 1) / 2) / (window * _DEVIATION)
    return np.maximum(np.exp(-(away**2) / 2), _LEAST).astype(np.float32)


def cut(volume: NDArray, corner: tuple[int, ...], shape: tuple[int, ...], fill: float = 0) -> NDArray:
    """Volume (D, H, W, ...) -> the window (*shape, ...) that starts at ``corner``; ``fill`` beyond the volume's end."""
    part = volume[tuple(slice(c, c + n) for c, n in zip(corner, shape))]
    missing = [(0, n - found) for n, found in zip(shape, part.shape)]
    if not any(after for _, after in missing):
        return part
    return np.pad(part, missing + [(0, 0)] * (part.ndim - len(shape)), constant_values=fill)


def blended(
    grid: Shape, window: Shape, overlap: float, predict: Callable[[Shape], NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Slices (C, H, W) of a volume (D, H, W) in order: at each voxel the weighted mean over the windows that hold it.

    predict(corner) -> (C, *window), the prediction of the window there; what lies beyond the volume's end is not used.
    Only as many slices are kept as one window has, however many the volume has.  Raises BadOverlap.
    """
    first, rows, columns = (starts(n, w, overlap) for n, w in zip(grid, window))
    weights = [profile(n, w) for n, w in zip(grid, window)]
    weight = weights[0][:, None, None] * weights[1][:, None] * weights[2]
    # The windows lie on a lattice, so that the sum of their weights is a product, too.
    norm = [_norm(n, at, w) for n, at, w in zip(grid, (first, rows, columns), weights)]
    open_: NDArray[np.float32] | None = None
    for number, z in enumerate(first):
        for y, x in itertools.product(rows, columns):
            part = predict((z, y, x))
            if open_ is None:
                open_ = np.zeros((len(part), window[0], *grid[1:]), np.float32)
            part = part[:, :, : grid[1] - y, : grid[2] - x]
            inside = weight[:, : part.shape[2], : part.shape[3]]
            open_[:, :, y : y + part.shape[2], x : x + part.shape[3]] += part * inside
        done = (first[number + 1] if number + 1 < len(first) else grid[0]) - z
        for i in range(done):
            yield open_[:, i] / (norm[0][z + i] * norm[1][:, None] * norm[2])
        for i in range(window[0]):  # slice by slice: moved at once they would be there twice
            open_[:, i] = open_[:, i + done] if i + done < window[0] else 0


def _norm(length: int, at: list[int], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    total = np.zeros(max(length, at[-1] + len(weights)), np.float32)
    for start in at:
        total[start : start + len(weights)] += weights
    return total[:length]
