"""Prompts in a volume, for models that see patches: each object is looked for in one window around its prompts."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import BadPrompt, Image, VolumeQuery, pile, preprocess, stack
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.preparation import Preparation, resampled, restored
from medvfm_jax.images.windows import cut
from medvfm_jax.types import PAD, ModelSpec, Prediction

Track = Callable[[Sequence[int]], Iterable[int]]


def prompted_labels(
    spec: ModelSpec,
    image: Image,
    queries: Sequence[VolumeQuery],
    channel_names: tuple[str, ...],
    preparation: Preparation,
    predict: Callable[[NDArray, dict[str, NDArray]], Prediction],
    track: Track = iter,
) -> NDArray[np.uint16]:
    """Volume and questions -> label map (X, Y, Z) on its own grid, object i numbered i + 1.

    The volume is prepared as the weights want it. The window of an object has the middle of its prompts in its middle,
    as far as the volume reaches; beyond it the object is not looked for. Where objects overlap the most probable has
    the voxel.

    Args:
        spec: of the model, which sees patches and takes prompts.
        image: the volume.
        queries: one for each object, in voxels of the volume.
        channel_names: of the data that the weights were trained on.
        preparation: of volumes before the model sees them.
        predict: (patch (D, H, W, C), {"points": (1, P, 3), "labels": (1, P)}) -> Prediction.
        track: shows progress over the objects, whose numbers it gives back.

    Returns:
        0 where no object is.

    Raises:
        BadPrompt: prompts of one object that do not fit into one window together.
        BadImage: a volume that lacks what the preparation needs.
    """
    axis = slice_axis(image)
    piled = pile(image.array, axis)
    own, scale = piled.shape[:3], preparation.scale(image.array, channel_names)
    grid = preparation.grid(own, image.spacing, axis, str(image.path))
    volume = scale(piled)
    if grid != own:
        volume = resampled(volume, grid)
    shares = np.asarray(grid, np.float32) / np.asarray(own, np.float32)
    found: list[tuple[tuple[int, ...], NDArray[np.float32]]] = []
    for number in track(range(len(queries))):
        points, labels = queries[number].tokens()
        points = (points + 0.5) * shares - 0.5
        corner = _corner(points[labels != PAD], spec, grid)
        patch, _ = preprocess(spec, cut(volume, corner, spec.input_shape[:3]))
        low = predict(patch, {"points": (points - np.float32(corner))[None], "labels": labels[None]})
        best = 0 if low.iou is None else int(np.asarray(low.iou)[0].argmax())
        logits = np.asarray(low.logits[0, best], np.float32)
        found.append((corner, 1 / (1 + np.exp(-np.clip(logits, -80, 80)))))
    slices = _slices(found, grid)
    if grid != own:
        slices = restored(slices, own, grid[0])
    return stack((_numbered(plane) for plane in slices), image)


def _corner(points: NDArray, spec: ModelSpec, grid: tuple[int, ...]) -> tuple[int, ...]:
    """First voxel of the window around points (n, 3)."""
    window = spec.input_shape[:3]
    middle = (points.min(0) + points.max(0)) / 2
    corner = [
        min(max(0, math.floor(m - (w - 1) / 2 + 0.5)), max(0, n - w)) for m, w, n in zip(middle, window, grid)
    ]
    if ((points < np.subtract(corner, 0.5)) | (points >= np.add(corner, window))).any():
        raise BadPrompt(
            f"The prompts of one object reach further than the {' x '.join(map(str, window))} voxels that {spec.name} "
            "sees at once; give fewer, or resample the volume to larger voxels."
        )
    return tuple(corner)


def _slices(
    found: Sequence[tuple[tuple[int, ...], NDArray[np.float32]]], grid: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Probabilities (objects, H, W) of each slice of a volume; 0 outside the windows."""
    for z in range(grid[0]):
        plane = np.zeros((len(found), *grid[1:]), np.float32)
        for number, ((first, row, column), part) in enumerate(found):
            if first <= z < first + len(part):
                here = plane[number, row : row + part.shape[1], column : column + part.shape[2]]
                here[:] = part[z - first, : here.shape[0], : here.shape[1]]
        yield plane


def _numbered(plane: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.where(plane.max(0) > 0.5, plane.argmax(0) + 1, 0).astype(np.uint16)
