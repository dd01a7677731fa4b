"""Distances between the boundaries of two binary masks in 2-D or 3-D, in the units of `spacing` (mm).

Published tools use two definitions of "the boundary"; each function here says which one it was given.

* "element" (DeepMind `surface-distance`): boundary pieces lie between pixel centres and carry their length
or area in
  mm, so that anisotropic voxels and oblique surfaces are weighted fairly. Percentile: smallest distance
  that covers the given share of the boundary, per direction, then the larger of the two.
* "voxel" (MedPy, MONAI, and with them TransUNet, SAMed and nnU-Net v1): mask voxels with a background
neighbour
  across a face (the outside of the array is background), each counting once. Percentile: linear
  interpolation; over both directions pooled (MedPy) or per direction, then the larger (MONAI).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from medvfm_jax.metrics.overlap import check_shapes
from medvfm_jax.metrics.surface_elements import cell_codes, element_sizes
from medvfm_jax.types import MedvfmError

Definition = Literal["element", "voxel"]

_REACH = 2  # pixels along each axis in which neighbours are looked up one by one
_MUCH = 0.05  # of the pixels of the box
_ROUNDING = 1e-9  # relative; a surface at exactly the tolerance is within it, whatever 3 * 0.7 rounds to


class BadSpacing(MedvfmError):
    """A spacing that is not one positive number per axis, or a mask that is not 2-D or 3-D."""


class SurfaceDistances(NamedTuple):
    """Distance in mm of every boundary piece to the other mask's boundary, and the weight of each piece.

    `from_reference` and `reference_weight` have one entry per piece of the reference's boundary,
    `from_prediction` and `prediction_weight` one per piece of the prediction's. Without a boundary on the
    other side: inf.
    """

    from_reference: NDArray[np.float64]
    from_prediction: NDArray[np.float64]
    reference_weight: NDArray[np.float64]
    prediction_weight: NDArray[np.float64]
    definition: Definition


@functools.lru_cache(maxsize=64)
def _sizes(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    return element_sizes(spacing)


def _crop(reference: NDArray, prediction: NDArray) -> tuple[slice, ...] | None:
    """Bounding box of both masks together, or None when both are empty."""
    either = reference | prediction
    box = []
    for axis in range(either.ndim):
        rows = np.flatnonzero(either.any(axis=tuple(k for k in range(either.ndim) if k != axis)))
        if not rows.size:
            return None
        box.append(slice(int(rows[0]), int(rows[-1]) + 1))
    return tuple(box)


def _element_boundary(mask: NDArray, spacing: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """Mask -> where the boundary is (one entry per cell between pixel centres), weights of those cells."""
    codes = cell_codes(mask)
    full = np.uint8((1 << 2**mask.ndim) - 1)
    boundary = codes + np.uint8(1) > 1 if full == 255 else (codes != 0) & (codes != full)
    return boundary, _sizes(spacing)[codes[boundary]]


def _voxel_boundary(mask: NDArray, spacing: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """Mask -> mask voxels with a face neighbour outside it, weights of one."""
    boundary = mask & ~ndimage.binary_erosion(mask)
    return boundary, np.ones(np.count_nonzero(boundary))


@functools.lru_cache(maxsize=64)
def _neighbours(spacing: tuple[float, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps (n, dimension) of at most _REACH pixels and their lengths in mm, the shortest first.

    Only those that are no longer than the shortest step beyond that reach, so that the first hit is the nearest.
    """
    steps = np.array(list(itertools.product(range(-_REACH, _REACH + 1), repeat=len(spacing))))
    lengths = np.sqrt(((steps * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= (_REACH + 1) * min(spacing)]
    return steps[order], lengths[order]


def _distances(sources: NDArray, targets: NDArray, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Distance of each marked source to the nearest marked target, exact Euclidean.

    Boundaries of two segmentations of one structure mostly lie within a few pixels of each other: neighbours are looked
    up in the order of their distance, and what has none nearby is searched for in a tree.  A tree is slow far from
    everything, so where that is much, the whole box is transformed.
    """
    result = np.full(np.count_nonzero(sources), np.inf)
    if not targets.any():
        return result
    around = np.pad(targets, _REACH)
    strides = np.array(around.strides)  # of bytes, which booleans are
    where, flat = np.argwhere(sources), around.reshape(-1)
    left = np.arange(len(where))
    positions = (where + _REACH) @ strides
    for shift, length in zip(*_neighbours(spacing)):
        hit = flat[positions + shift @ strides]
        result[left[hit]] = length
        left, positions = left[~hit], positions[~hit]
        if not len(left):
            return result
    if len(left) > _MUCH * targets.size:
        result[left] = ndimage.distance_transform_edt(~targets, sampling=spacing)[tuple(where[left].T)]
        return result
    steps = np.array(spacing)
    tree = KDTree(np.argwhere(targets) * steps, compact_nodes=False, balanced_tree=False)
    result[left] = tree.query(where[left] * steps)[0]
    return result


def surface_distances(
    reference: NDArray,
    prediction: NDArray,
    spacing: Sequence[float] | None = None,
    definition: Definition = "element",
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Works on the bounding box of both masks, so the cost follows the structures and not the volume.

    Args:
        reference: (n0, n1[, n2]) bool.
        prediction: of the same shape.
        spacing: of each axis, in mm; None: ones.
        definition: of a surface: "element" (DeepMind's surface-distance) or "voxel" (MedPy).

    Returns:
        Distances of both directions, with the area each stands for.

    Raises:
        MaskShapeMismatch: the masks differ in shape.
        BadSpacing: a spacing that is not one positive number per axis.

    References:
        Nikolov et al. 2018 (element), https://arxiv.org/abs/1809.04430; MedPy (voxel).
    """
    reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
    check_shapes(reference, prediction)
    steps = check_spacing(spacing, reference.ndim)
    box = _crop(reference, prediction)
    if box is None:
        nothing = np.zeros(0)
        return SurfaceDistances(nothing, nothing, nothing, nothing, definition)
    boundary_of = _element_boundary if definition == "element" else _voxel_boundary
    of_reference, reference_weight = boundary_of(reference[box], steps)
    of_prediction, prediction_weight = boundary_of(prediction[box], steps)
    return SurfaceDistances(
        _distances(of_reference, of_prediction, steps),
        _distances(of_prediction, of_reference, steps),
        reference_weight,
        prediction_weight,
        definition,
    )


def check_spacing(spacing: Sequence[float] | None, dimension: int) -> tuple[float, ...]:
    """Spacing or None -> one positive float per axis; raises `BadSpacing` otherwise."""
    steps = (1.0,) * dimension if spacing is None else tuple(float(s) for s in spacing)
    if dimension not in (2, 3) or len(steps) != dimension or not all(0 < s < np.inf for s in steps):
        raise BadSpacing(
            f"surface distances need a 2-D or 3-D mask and one positive spacing per axis; got a "
            f"{dimension}-D mask with spacing {steps}"
        )
    return steps


def hausdorff(distances: SurfaceDistances) -> float:
    """Largest distance of either boundary to the other; inf if one mask is empty, NaN if both are."""
    both = np.concatenate([distances.from_reference, distances.from_prediction])
    return float(both.max()) if both.size else float("nan")


def hausdorff_percentile(
    distances: SurfaceDistances, percent: float = 95.0, *, pooled: bool = False
) -> float:
    """The percentile Hausdorff distance (HD95); inf if one mask is empty, NaN if both are.

    Per direction, then the larger (element weighted: DeepMind; voxel: MONAI); `pooled`: over all distances
    of both directions together (voxel: MedPy).
    """
    sides = [
        (distances.from_reference, distances.reference_weight),
        (distances.from_prediction, distances.prediction_weight),
    ]
    if not any(d.size for d, _ in sides):
        return float("nan")
    if any(not d.size for d, _ in sides):
        return float("inf")
    if pooled:
        sides = [(np.concatenate([d for d, _ in sides]), np.concatenate([w for _, w in sides]))]
    percentile = _covering if distances.definition == "element" else _interpolated
    return max(percentile(d, w, percent) for d, w in sides)


def _covering(distances: NDArray, weight: NDArray, percent: float) -> float:
    """Smallest distance within which `percent` of the weight lies."""
    order = np.lexsort((weight, distances))
    share = np.cumsum(weight[order]) / weight.sum()
    return float(distances[order[min(np.searchsorted(share, percent / 100), len(order) - 1)]])


def _interpolated(distances: NDArray, weight: NDArray, percent: float) -> float:
    return float(np.percentile(distances, percent))


def average_distance(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance: weighted mean over both boundaries together (MedPy, MONAI: voxel).

    inf if one mask is empty, NaN if both are.
    """
    both = np.concatenate([distances.from_reference, distances.from_prediction])
    weight = np.concatenate([distances.reference_weight, distances.prediction_weight])
    return float(np.sum(both * weight) / weight.sum()) if both.size else float("nan")


def normalised_surface_distance(distances: SurfaceDistances, tolerance: float) -> float:
    """Share of both boundaries within `tolerance` mm of the other (surface Dice); NaN if both are empty.

    Source: Nikolov et al. 2018; the "element" definition is theirs.
    """
    weight = distances.reference_weight.sum() + distances.prediction_weight.sum()
    if weight == 0:
        return float("nan")
    limit = tolerance * (1 + _ROUNDING)
    within = distances.reference_weight[distances.from_reference <= limit].sum()
    within += distances.prediction_weight[distances.from_prediction <= limit].sum()
    return float(within / weight)
