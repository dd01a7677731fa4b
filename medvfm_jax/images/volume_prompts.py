"""Prompts in a volume: what is asked about one object, and questions simulated from its mask."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.prompts import BadPrompt
from medvfm_jax.types import (
    ABSENT,
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    PAD,
    ModelSpec,
    Prompts,
)


class VolumeQuery(NamedTuple):
    """What is asked about one object of a volume, in voxels (z, y, x): z is a slice, y and x are its pixels.

    Attributes:
        box: (6,) z0, y0, x0, z1, y1, x1, the first and the last voxel, or None.
        points: (n, 3) z, y, x.
        labels: (n,) 1 inside the object, 0 outside.
    """

    box: NDArray | None = None
    points: NDArray = np.zeros((0, 3), np.float32)
    labels: NDArray = np.zeros((0,), np.int32)

    def tokens(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Points (P, 3) and their labels (P,): the clicks, then two corners or SAM's one padding point."""
        clicks = np.asarray(self.points, np.float32).reshape(-1, 3)
        corners = np.zeros((1, 3)) if self.box is None else np.reshape(self.box, (2, 3))
        ends = (PAD,) if self.box is None else (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)
        return np.concatenate([clicks, corners]).astype(np.float32), np.array([*self.labels, *ends], np.int32)


def check_volume_query(query: VolumeQuery, spec: ModelSpec, grid: tuple[int, ...]) -> None:
    """Refuse a question that cannot be meant.

    Args:
        query: in voxels of the volume.
        spec: of the model; of prompts only the kinds that it was built for are taken.
        grid: (D, H, W) of the volume.

    Raises:
        BadPrompt: nothing asked, an inverted box, one that the model has no tokens for, a prompt outside the volume, or
            an unknown label.
    """
    size = f"which has {grid[0]} slices of {grid[1]} rows and {grid[2]} columns"
    if query.box is None and not len(query.points):
        raise BadPrompt("A question about a volume needs a box or a point.")
    if query.box is not None and "box" not in spec.prompts:
        raise BadPrompt(f"{spec.name} has no tokens for boxes; give points, Z Y X LABEL.")
    if not np.isin(query.labels, (BACKGROUND, FOREGROUND)).all():
        raise BadPrompt(f"The label of a point is {FOREGROUND} inside the object or {BACKGROUND} outside.")
    if query.box is not None and (np.asarray(query.box[:3]) > query.box[3:]).any():
        raise BadPrompt(f"The box {_words(query.box)} is inverted; expected Z0 Y0 X0 Z1 Y1 X1.")
    points, labels = query.tokens()
    for point in points[labels != PAD]:
        if not ((point >= 0) & (point < grid)).all():
            raise BadPrompt(f"Z Y X of {_words(point)} lies outside the volume, {size}.")


def volume_prompts(queries: Sequence[VolumeQuery | None], slots: int) -> Prompts:
    """Q questions about one window -> prompts of it.

    Args:
        queries: in voxels of the window; None asks nothing.
        slots: P, tokens per prompt.

    Returns:
        Points (Q, P, 3) and labels (Q, P), numpy; slots left over are ABSENT.

    Raises:
        BadPrompt: a query needs more than ``slots``.
    """
    points = np.zeros((len(queries), slots, 3), np.float32)
    labels = np.full((len(queries), slots), ABSENT, np.int32)
    for i, query in enumerate(queries):
        if query is None:
            continue
        places, kinds = query.tokens()
        if len(kinds) > slots:
            raise BadPrompt(
                f"A prompt needs {len(kinds)} slots where {slots} were planned; plan for more points."
            )
        points[i, : len(kinds)], labels[i, : len(kinds)] = places, kinds
    return Prompts(points, labels, None)


def box_in_volume(
    mask: NDArray, rng: np.random.Generator | None = None, share: float = 0.0
) -> NDArray[np.float32]:
    """Box around a mask, its sides moved outwards by a random amount as ``jitter_box`` does on pictures.

    Args:
        mask: (D, H, W) bool.
        rng: for the amounts; None for the tight box.
        share: largest amount as a share of the volume's longest side, but at most a quarter of the box's own side, and
            at least one voxel.

    Returns:
        (6,) z0, y0, x0, z1, y1, x1: the first and the last voxel.

    Raises:
        BadPrompt: the mask is empty.
    """
    if not mask.any():
        raise BadPrompt("An empty mask has no box; leave such volumes out.")
    ends = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    low, high = np.array(ends, np.float32).T
    if rng is not None and share > 0:
        reach = np.minimum(share * max(mask.shape), np.maximum(1.0, 0.25 * (high - low + 1)))
        low = np.maximum(0, low - rng.uniform(0, 1, 3) * reach)
        high = np.minimum(np.array(mask.shape) - 1, high + rng.uniform(0, 1, 3) * reach)
    return np.concatenate([low, high]).astype(np.float32)


def clicks_in_volume(rng: np.random.Generator, mask: NDArray, n: int, *, centre: bool) -> NDArray[np.float32]:
    """Voxels of a mask at random, distinct as far as there are so many.

    Args:
        rng: for the choice.
        mask: (D, H, W) bool.
        n: their number.
        centre: whether the first is the voxel farthest from the mask's border instead.

    Returns:
        (n, 3) z, y, x.

    Raises:
        BadPrompt: the mask is empty.
    """
    where = np.argwhere(mask)
    if not len(where):
        raise BadPrompt("An empty mask has no points; leave such volumes out.")
    clicks = where[rng.choice(len(where), n, replace=n > len(where))].astype(np.float32)
    if centre:
        from scipy import ndimage  # takes a third of a second

        first = where.min(0)
        inside = mask[tuple(slice(a, b + 1) for a, b in zip(first, where.max(0)))]
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1]
        clicks[0] = first + np.unravel_index(np.argmax(depth), depth.shape)
    return clicks


def _words(numbers: NDArray) -> str:
    return " ".join(f"{n:g}" for n in numbers)
