"""Prompts a user might give, simulated from masks; coordinates are (x, y) pixels of the image, as in SAM.

Number i means pixel i (the model adds the half pixel to its centre), so a box is (x0, y0, x1, y1) with the
first and the last pixel of the object, as MedSAM was trained.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.frame import Frame, to_model_points
from medvfm_jax.types import (
    ABSENT,
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    PAD,
    MedvfmError,
    Prompts,
)


class BadPrompt(MedvfmError, ValueError):
    """A prompt that means nothing on this image, or cannot be made from this mask."""


class Query(NamedTuple):
    """What is asked about one object: a box, clicks, or both, in pixels of the image.

    Attributes:
        box: (4,) x0, y0, x1, y1, or None.
        points: (n, 2) x, y.
        labels: (n,) 1 inside the object, 0 outside.
    """

    box: NDArray | None = None
    points: NDArray = np.zeros((0, 2), np.float32)
    labels: NDArray = np.zeros((0,), np.int32)

    @property
    def slots(self) -> int:
        """Number of tokens this prompt needs: clicks plus two corners, or plus SAM's one padding point."""
        return len(self.points) + (2 if self.box is not None else 1)


def box_of(mask: NDArray) -> NDArray[np.float32]:
    """Tight box around a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        (4,) x0, y0, x1, y1 in pixels.

    Raises:
        BadPrompt: the mask is empty.
    """
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if len(rows) == 0:
        raise BadPrompt("An empty mask has no box; leave such images out.")
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def jitter_box(
    rng: np.random.Generator,
    box: NDArray,
    shape: tuple[int, int],
    *,
    share: float = 0.02,
    relative: float = 0.25,
) -> NDArray[np.float32]:
    """Each side of a box moved outwards by a random amount, kept inside the image.

    The amount is uniform between 0 and ``share`` of the image's longest side (0.02: MedSAM's 20 pixels of
    1024), but at most ``relative`` of the box's own side and at least one pixel, so that a box around a cell
    stays one around that cell.

    Args:
        rng: for the amounts.
        box: (4,) x0, y0, x1, y1.
        shape: (H, W) of the image.
        share: of the image's longest side.
        relative: of the box's own side.

    Returns:
        (4,) x0, y0, x1, y1.
    """
    x0, y0, x1, y1 = box
    limit = share * max(shape)
    reach = [min(limit, max(1.0, relative * (high - low + 1))) for low, high in ((x0, x1), (y0, y1))]
    left, top, right, bottom = rng.uniform(0, 1, 4) * [*reach, *reach]
    moved = np.array([x0 - left, y0 - top, x1 + right, y1 + bottom])
    return np.clip(moved, 0, [shape[1] - 1, shape[0] - 1] * 2).astype(np.float32)


def points_in(rng: np.random.Generator, mask: NDArray, n: int) -> NDArray[np.float32]:
    """Pixels of a mask at random, distinct as far as there are so many.

    Args:
        rng: for the choice.
        mask: (H, W) bool.
        n: their number.

    Returns:
        (n, 2) x, y.

    Raises:
        BadPrompt: the mask is empty.
    """
    where = np.flatnonzero(mask)
    if len(where) == 0:
        raise BadPrompt("An empty mask has no points; leave such images out.")
    chosen = rng.choice(where, n, replace=n > len(where))
    return np.stack([chosen % mask.shape[1], chosen // mask.shape[1]], -1).astype(np.float32)


def centre_point(mask: NDArray) -> NDArray[np.float32]:
    """The pixel of a mask farthest from the mask's border.

    Args:
        mask: (H, W) bool.

    Returns:
        (2,) x, y.

    Raises:
        BadPrompt: the mask is empty.
    """
    if not mask.any():
        raise BadPrompt("An empty mask has no centre; leave such images out.")
    # Only the box around the mask matters; one pixel around it makes the image border a border of the mask.
    x0, y0, x1, y1 = box_of(mask).astype(int)
    from scipy import ndimage  # takes a third of a second

    depth = ndimage.distance_transform_edt(np.pad(mask[y0 : y1 + 1, x0 : x1 + 1], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(depth), depth.shape)
    return np.array([x0 + x, y0 + y], np.float32)


def correction_click(
    rng: np.random.Generator, reference: NDArray, prediction: NDArray
) -> tuple[NDArray[np.float32], int] | None:
    """The click a user would make next.

    The centre (largest distance to its border) of the largest connected region that is wrong.

    Args:
        rng: breaks ties.
        reference: (H, W) bool.
        prediction: (H, W) bool.

    Returns:
        ((2,) x, y; label): 1 if the region belongs to the object and is missing, 0 if it is predicted and does not
        belong. None if nothing is wrong.
    """
    reference, prediction = reference.astype(bool), prediction.astype(bool)
    candidates: list[tuple[int, int, int]] = []
    regions = {}
    for label, error in ((FOREGROUND, reference & ~prediction), (BACKGROUND, prediction & ~reference)):
        from scipy import ndimage

        regions[label], _ = ndimage.label(error)
        sizes = np.bincount(regions[label].reshape(-1))[1:]
        candidates += [(int(size), label, number) for number, size in enumerate(sizes, start=1)]
    if not candidates:
        return None
    largest = max(size for size, _, _ in candidates)
    tied = [c for c in candidates if c[0] == largest]
    _, label, number = tied[rng.integers(len(tied))]
    return centre_point(regions[label] == number), label


def check_query(query: Query, shape: tuple[int, int]) -> None:
    """Refuse a query that cannot be meant.

    A box has at least one pixel: x0 = x1 is one pixel wide.

    Args:
        query: in pixels of the image.
        shape: (H, W) of the image.

    Raises:
        BadPrompt: an inverted box, a box or click outside the image, or an unknown label.
    """
    height, width = shape
    if query.box is not None:
        x0, y0, x1, y1 = (float(v) for v in query.box)
        box = f"The box {x0:g} {y0:g} {x1:g} {y1:g}"
        if not np.isfinite([x0, y0, x1, y1]).all() or x1 < x0 or y1 < y0:
            raise BadPrompt(f"{box} is inverted; expected X0 Y0 X1 Y1 with X0 <= X1 and Y0 <= Y1.")
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise BadPrompt(
                f"{box} reaches outside the image, which is {width} pixels wide and {height} high; "
                "use pixels of the original image."
            )
    for x, y in np.asarray(query.points, float).reshape(-1, 2):
        if not (0 <= x <= width and 0 <= y <= height):
            raise BadPrompt(
                f"The point {x:g} {y:g} lies outside the image, which is {width} pixels wide and {height} high."
            )
    _check_labels(query)


def _check_labels(query: Query) -> None:
    points, labels = np.asarray(query.points).reshape(-1, 2), np.asarray(query.labels).reshape(-1)
    if len(points) != len(labels):
        raise BadPrompt(f"{len(points)} points have {len(labels)} labels; every point needs one.")
    wrong = labels[~np.isin(labels, (BACKGROUND, FOREGROUND))]
    if len(wrong):
        raise BadPrompt(
            f"A point has the label {wrong[0]:g}; expected {FOREGROUND} inside the object or {BACKGROUND} outside."
        )


def make_prompts(frame: Frame, queries: Sequence[Query | None], *, slots: int | None = None) -> Prompts:
    """Q questions about one image -> prompts in the model's frame.

    A query without a box gets the one padding point (label -1) that SAM appends; slots left over, and all slots of
    None, are ABSENT.

    Args:
        frame: of the image.
        queries: in pixels of the image; None asks nothing.
        slots: P, tokens per prompt; by default what the largest query needs.

    Returns:
        Points (Q, P, 2) and labels (Q, P), numpy.

    Raises:
        BadPrompt: a query needs more than ``slots``, or has a label that is neither 0 nor 1.
    """
    needed = max([q.slots for q in queries if q is not None], default=2)
    slots = needed if slots is None else slots
    if needed > slots:
        raise BadPrompt(f"A prompt needs {needed} slots where {slots} were planned; plan for more points.")
    points = np.zeros((len(queries), slots, 2), np.float32)
    labels = np.full((len(queries), slots), ABSENT, np.int32)
    for i, query in enumerate(queries):
        if query is None:
            continue
        _check_labels(query)
        n = len(query.points)
        points[i, :n], labels[i, :n] = to_model_points(frame, query.points), query.labels
        if query.box is None:
            labels[i, n] = PAD
        else:
            points[i, n : n + 2] = to_model_points(frame, np.reshape(query.box, (2, 2)))
            labels[i, n : n + 2] = BOX_TOP_LEFT, BOX_BOTTOM_RIGHT
    return Prompts(points, labels, None)


def flip_prompts(
    points: NDArray, labels: NDArray, shape: tuple[int, int], *, horizontal: bool, vertical: bool
) -> NDArray[np.float32]:
    """Points on an image -> the same points on the flipped image.

    Pixel i goes to W - 1 - i. The corners of a box are exchanged where needed, so that label 2 stays the top
    left and label 3 the bottom right one.

    Args:
        points: (..., P, 2).
        labels: (..., P).
        shape: (H, W) of the image.
        horizontal: flip left and right.
        vertical: flip up and down.

    Returns:
        (..., P, 2).
    """
    moved = np.array(points, np.float32)
    for axis, (wanted, size) in enumerate(((horizontal, shape[1]), (vertical, shape[0]))):
        if not wanted:
            continue
        moved[..., axis] = size - 1 - moved[..., axis]
        value = moved[..., axis]
        first, last = labels == BOX_TOP_LEFT, labels == BOX_BOTTOM_RIGHT
        low, high = value[first].copy(), value[last].copy()
        value[first], value[last] = high, low
    return moved
