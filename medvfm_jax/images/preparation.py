"""What is done to a volume before a model of patches sees it: voxels of one size, intensities of one scale.

A run chooses it from its training data and stores it with the delta; predictions repeat it and undo the resampling.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.budget import VARIABLE, budget
from medvfm_jax.images.image import BadImage
from medvfm_jax.images.intensity import VolumeScale
from medvfm_jax.images.sampling import is_even, matrix
from medvfm_jax.printable import counted
from medvfm_jax.types import IGNORE

Shape = tuple[int, int, int]  # (D, H, W), the axis of slices first


class Preparation(NamedTuple):
    """How volumes are prepared; the default does not resample and scales intensities as slices are.

    spacing: (depth, height, width) of a voxel in mm that all volumes are resampled to, or None.
    intensity: of each channel the (least, greatest) intensity shown, or None for z-scores of each volume; see
        ``VolumeScale``.  None for all: the usual scale.
    """

    spacing: tuple[float, float, float] | None = None
    intensity: tuple[tuple[float, float] | None, ...] | None = None

    def record(self) -> dict[str, Any] | None:
        """As JSON can hold it; None if nothing is done."""
        if self == AS_THEY_ARE:
            return None
        ranges = self.intensity
        return {
            "spacing": None if self.spacing is None else list(self.spacing),
            "intensity": None if ranges is None else [r and list(r) for r in ranges],
        }

    def scale(self, array: NDArray, channel_names: tuple[str, ...]) -> VolumeScale:
        """How the intensities of a volume (..., C) become 0..1; raises BadImage for another number of channels."""
        if self.intensity is not None and len(self.intensity) != array.shape[-1]:
            raise BadImage(
                f"The volume has {counted(array.shape[-1], 'channel')}, and the run knows the intensities of "
                f"{len(self.intensity)}; give the channels that it was trained on."
            )
        return VolumeScale(array, channel_names, intensity=self.intensity)

    def grid(self, shape: Shape, spacing: tuple[float, ...] | None, axis: int, what: str) -> Shape:
        """(D, H, W) of a volume after resampling.

        spacing: of the volume's own axes in mm, of which ``axis`` is that of slices.  what: names the volume.
        Raises BadImage if it has no spacing, or would become too large to hold.
        """
        if self.spacing is None:
            return shape
        if spacing is None:
            raise BadImage(
                f"{what} says nothing about the size of its voxels, and the run resamples to "
                f"{' x '.join(f'{n:g}' for n in self.spacing)} mm: save it as NIfTI with its spacing, or train without "
                "--spacing."
            )
        own = slices_first(spacing, axis)
        depth, height, width = (
            max(1, round(n * size / wanted)) for n, size, wanted in zip(shape, own, self.spacing)
        )
        needed, most = depth * height * width * 4, budget()
        if needed > most:
            raise BadImage(
                f"{what} resampled to {' x '.join(f'{n:g}' for n in self.spacing)} mm has {depth} x {height} x {width} "
                f"voxels, more than the {most / 2**30:.3g} GiB that are used at once; crop it, train with a larger "
                f"--spacing, or raise the limit with {VARIABLE}."
            )
        return depth, height, width


AS_THEY_ARE = Preparation()


def of_record(record: Mapping[str, Any] | None) -> Preparation:
    """The preparation that a record is of; ValueError, TypeError or KeyError for anything else."""
    if record is None:
        return AS_THEY_ARE
    spacing, ranges = record["spacing"], record["intensity"]
    if spacing is not None:
        depth, height, width = map(float, spacing)
        if not min(depth, height, width) > 0 or max(depth, height, width) == float("inf"):
            raise ValueError("a spacing that is not positive")
        spacing = (depth, height, width)
    if ranges is not None:
        ranges = tuple(None if r is None else (float(r[0]), float(r[1])) for r in ranges)
    return Preparation(spacing, ranges)


def slices_first(sizes: tuple[float, ...], axis: int) -> tuple[float, float, float]:
    """Numbers of a volume's axes (x, y, z) in the order (depth, height, width) that ``images.pile`` gives it."""
    width, height = (n for a, n in enumerate(sizes) if a != axis)
    return sizes[axis], height, width


def resampled(volume: NDArray, shape: Shape) -> NDArray[np.float32]:
    """Volume (D, H, W, C) -> (*shape, C), linear along each axis, without aliasing where it shrinks.

    A volume whose voxels are all the same keeps their numbers, free of rounding.
    """
    if volume.shape[:3] != shape and is_even(volume):
        return np.tile(volume[0, 0, 0].astype(np.float32), (*shape, 1))
    for axis, size in enumerate(shape):
        if volume.shape[axis] != size:
            volume = _along(volume, axis, size)
    return np.ascontiguousarray(volume, np.float32)


def resampled_labels(labels: NDArray, shape: Shape) -> NDArray:
    """Label map (D, H, W) -> (*shape): the value with the largest share there, IGNORE being one of them."""
    if labels.shape == shape:
        return labels
    best = np.full(shape, -1.0, np.float32)
    out = np.full(shape, IGNORE, labels.dtype)
    for value in np.unique(labels):
        share = resampled((labels == value)[..., None].astype(np.float32), shape)[..., 0]
        better = share > best
        best[better], out[better] = share[better], value
    return out


def restored(
    slices: Iterable[NDArray[np.float32]], shape: Shape, depth: int
) -> Iterator[NDArray[np.float32]]:
    """Slices (C, h, w) of a resampled volume, in order -> those (C, H, W) of the volume (D, H, W) it was made from.

    depth: how many slices come in.  Only those that the next one is made of are kept.
    """
    weights = matrix(depth, shape[0], "linear")
    kept: dict[int, NDArray[np.float32]] = {}
    source, read = iter(slices), 0
    for row in range(shape[0]):
        within = slice(weights.indptr[row], weights.indptr[row + 1])
        needed = weights.indices[within].tolist()
        while read <= max(needed):
            plane = next(source)
            kept[read] = _along(_along(plane, 1, shape[1]), 2, shape[2])
            read += 1
        for number in [n for n in kept if n < min(needed)]:
            del kept[number]
        yield sum(share * kept[n] for n, share in zip(needed, weights.data[within]))


def _along(array: NDArray, axis: int, size: int) -> NDArray[np.float32]:
    """The array resampled along one axis."""
    first = np.moveaxis(np.asarray(array, np.float32), axis, 0)
    flat = matrix(len(first), size, "linear") @ first.reshape(len(first), -1)
    return np.moveaxis(flat.reshape(size, *first.shape[1:]), 0, axis)
