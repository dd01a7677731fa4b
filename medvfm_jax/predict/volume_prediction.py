"""A volume predicted slice by slice, or through windows that slide over it, one finished slice after the other."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import Image, budget, pile, plane
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation, resampled, restored
from medvfm_jax.images.windows import blended, cut
from medvfm_jax.settings.records import BadConfig, require
from medvfm_jax.types import ModelSpec

OVERLAP = 0.5  # of windows, by default

Track = Callable[[Sequence[int]], Iterable[int]]


def resolved_overlap(spec: ModelSpec, overlap: float | None) -> float:
    """The share of a window that the next one covers too; raises BadConfig for one without a meaning."""
    if overlap is None:
        return OVERLAP
    if spec.rank == 2:
        raise BadConfig(
            f"{spec.name} sees one slice at a time, without windows that overlap; leave out --overlap."
        )
    require(0 <= overlap < 1, "overlap", overlap, "at least 0 and below 1")
    return overlap


def window_of(spec: ModelSpec, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """(D, H, W) voxels of a volume (D, H, W) that a model sees at once: a patch, or so many whole slices."""
    return spec.input_shape[:3] if spec.resize == "none" else (spec.input_shape[0], *grid[1:])


def label_slices(
    spec: ModelSpec,
    image: Image,
    channel_names: tuple[str, ...],
    predict: Callable[[NDArray], NDArray],
    *,
    overlap: float = OVERLAP,
    track: Track = iter,
    preparation: Preparation = AS_THEY_ARE,
) -> Iterator[NDArray[np.int32]]:
    """Volume -> class indices (H, W) of each slice along its axis of slices, in order.

    predict: of a model of slices, picture (H, W, C) in 0..1 -> class indices (H, W); of one of slabs or patches,
    (d, h, w, C) -> probabilities (C, d, h, w), which are averaged where windows overlap.  Beside the image only what
    one window needs is in memory, and the whole volume once more where it is resampled.  track: shows progress over
    the slices.  preparation: that of the run; raises BadImage where the volume lacks what it needs.
    """
    axis = slice_axis(image)
    scale, numbers = preparation.scale(image.array, channel_names), range(image.grid[axis])
    if spec.rank == 2:
        for index in track(numbers):
            yield predict(scale(plane(image.array, axis, index)))
        return
    piled = pile(image.array, axis)
    own = piled.shape[:3]
    grid = preparation.grid(own, image.spacing, axis, str(image.path))
    if grid != own:
        piled, scale = resampled(scale(piled), grid), np.asarray
    window = window_of(spec, grid)
    needed, most = spec.classes * math.prod(window) * 4, budget.budget()
    if needed > most:
        raise BadConfig(
            f"{spec.name} sees {' x '.join(map(str, window))} voxels at once; the probabilities of {spec.classes} "
            f"classes there take {needed / 2**30:.3g} GiB, and at most {most / 2**30:.3g} are used. Crop the volume "
            f"or raise the limit with {budget.VARIABLE}={math.ceil(needed / 2**30)}."
        )

    def at(corner: tuple[int, int, int]) -> NDArray[np.float32]:
        part = piled[tuple(slice(c, c + n) for c, n in zip(corner, window))]
        return predict(cut(scale(part), (0, 0, 0), window))  # filled after scaling: 0 is the darkest there

    slices = blended(grid, window, overlap, at)
    if grid != own:
        slices = restored(slices, own, grid[0])
    for _, probabilities in zip(track(numbers), slices):
        yield probabilities.argmax(0).astype(np.int32)
