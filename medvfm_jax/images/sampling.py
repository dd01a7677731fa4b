"""Separable resampling as one sparse matrix per axis: exact areas, or linear interpolation.

Output pixel i of n covers the interval [start + i·length/n, start + (i+1)·length/n] of the input, measured in
input pixels from the outer edge of the first one, so pixel j itself covers [j, j+1].

"area": the mean over that interval, each input pixel weighted with its overlap. This is what OpenCV calls
    INTER_AREA, for shrinking and (unlike its name suggests) for enlarging too; LiteMedSAM was trained on it.
"linear": a triangle as wide as the larger of an input and an output pixel: bilinear interpolation when
    enlarging, without aliasing when shrinking. What Pillow calls BILINEAR; SAM was trained on it.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse

Filter = Literal["area", "linear"]


@lru_cache(maxsize=256)
def matrix(
    size: int, out: int, filter: Filter, start: float = 0.0, length: float | None = None
) -> "sparse.csr_array":
    """Weights (out, size), rows summing to one; see the module for what start and length mean."""
    from scipy import sparse  # takes a third of a second

    weights, rows, columns = _entries(size, out, filter, start, length)
    return sparse.csr_array((weights, (rows, columns)), shape=(out, size))


def dense_matrix(
    size: int, out: int, filter: Filter, start: float = 0.0, length: float | None = None
) -> NDArray[np.float32]:
    """The same weights as an array of numpy, for which scipy need not be imported."""
    weights, rows, columns = _entries(size, out, filter, start, length)
    dense = np.zeros((out, size), np.float32)
    dense[rows, columns] = weights
    return dense


def _entries(
    size: int, out: int, filter: Filter, start: float, length: float | None
) -> tuple[NDArray[np.float32], NDArray, NDArray]:
    """The weights that are not zero, row by row, with their rows and columns."""
    length = float(size) if length is None else length
    step = length / out
    low = start + step * np.arange(out)
    if filter == "area":
        first, reach = np.floor(low + 1e-9).astype(int), int(np.ceil(step)) + 1
    else:
        half = max(step, 1.0)
        first, reach = np.floor(low + step / 2 - half).astype(int), int(np.ceil(2 * half)) + 1
    columns = first[:, None] + np.arange(reach)
    if filter == "area":
        overlap = np.minimum(columns + 1, (low + step)[:, None]) - np.maximum(columns, low[:, None])
        weights = np.maximum(overlap, 0.0)
    else:
        centre = (low + step / 2)[:, None]
        weights = np.maximum(1 - np.abs(columns + 0.5 - centre) / half, 0.0)
    weights = np.where((columns >= 0) & (columns < size), weights, 0.0)
    weights[weights < 1e-7] = 0.0  # rounding of the interval ends
    weights /= weights.sum(1, keepdims=True)
    rows = np.broadcast_to(np.arange(out)[:, None], columns.shape)
    keep = weights > 0
    return weights[keep].astype(np.float32), rows[keep], columns[keep]


def is_even(array: NDArray) -> bool:
    """Whether all pixels of a picture, or all voxels of a volume (..., C), are the same."""
    first = array[(0,) * (array.ndim - 1)]
    return all((part == first).all() for part in array)  # most arrays are known after their first part


def resize(image: NDArray, height: int, width: int, filter: Filter) -> NDArray[np.float32]:
    """Picture (H, W, C) -> (height, width, C) float32; one of a single colour keeps it, free of rounding."""
    rows, columns, channels = image.shape
    image = np.ascontiguousarray(image, np.float32)
    if (rows, columns) == (height, width):
        return image
    if is_even(image):
        return np.tile(image[0, 0], (height, width, 1))
    tall = matrix(rows, height, filter) @ rearrange(image, "H W c -> H (W c)")
    sideways = rearrange(tall, "h (W c) -> W (h c)", c=channels)
    wide = matrix(columns, width, filter) @ np.ascontiguousarray(sideways)
    return np.ascontiguousarray(rearrange(wide, "w (h c) -> h w c", c=channels))
