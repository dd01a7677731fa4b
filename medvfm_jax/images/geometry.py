"""Where voxels lie: spacing, grids, the axis to slice along."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.image import Image

ROUNDING = 0.05  # of a voxel edge: what rewriting a header moves a corner by
_EXACT = 1e-3  # of a voxel edge: as good as nothing
_ISOTROPIC = 1.05  # spacings within 5 % count as equal


def spacing_of(affine: NDArray) -> tuple[float, float, float]:
    """Affine (4, 4) -> size of a voxel along each axis, mm."""
    x, y, z = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return float(x), float(y), float(z)


def slice_axis(image: Image) -> int:
    """Axis along which a volume is cut into slices: that of the largest spacing, the last one if all are equal.

    The plane with the finest sampling in both directions is the one a radiologist looks at.
    """
    return widest_axis(image.spacing)


def widest_axis(spacing: tuple[float, ...] | None) -> int:
    """Axis of the largest of three spacings, see ``slice_axis``."""
    if spacing is None or max(spacing) <= _ISOTROPIC * min(spacing):
        return 2
    widest = [axis for axis in (2, 1, 0) if spacing[axis] * _ISOTROPIC >= max(spacing)]
    return widest[0]


def displacement(grid: tuple[int, ...], a: NDArray, b: NDArray) -> float:
    """Largest distance, in mm, between where two affines put a corner of the same volume (outer edges)."""
    ends = [(-0.5, n - 0.5) for n in grid]
    corners = np.array([[i, j, k, 1] for i in ends[0] for j in ends[1] for k in ends[2]], float)
    return float(np.linalg.norm((corners @ (np.asarray(a) - b).T)[:, :3], axis=1).max())


def slanted(affine: NDArray, grid: tuple[int, ...]) -> bool:
    """Whether the axes of a volume are not at right angles, which a qform cannot express.

    That is so if the volume with the nearest axes at right angles has a corner elsewhere, by more than rounding.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    upright = affine.copy()
    upright[:3, :3] = (left @ right) * sizes
    return displacement(grid, affine, upright) > ROUNDING * sizes.min()


class Mismatch(NamedTuple):
    """How the grids of two images differ.

    what: "" if not at all or by no more than rounding, else words for an error message. distance: of the
    corner that is farthest off, in mm; 0 without two affines, infinite for other shapes. rounded: whether
    the distance is more than nothing, and what programs that rewrite headers leave.
    """

    what: str
    distance: float = 0.0
    rounded: bool = False


def mismatch(a: Image, b: Image) -> Mismatch:
    """How the grid of ``a`` differs from that of ``b``, by the largest displacement of a corner.

    Up to ROUNDING of the smallest voxel edge is the same grid: float32 headers, quaternions and text with
    six digits round that much.
    """
    if a.grid != b.grid:
        return Mismatch(f"shape {a.grid} against {b.grid}", np.inf)
    if a.affine is None or b.affine is None:
        return Mismatch("")
    distance, smallest = displacement(a.grid, a.affine, b.affine), min(spacing_of(b.affine))
    if distance <= ROUNDING * smallest:
        return Mismatch("", distance, distance > _EXACT * smallest)
    ours, theirs = spacing_of(a.affine), spacing_of(b.affine)
    far = f"corners up to {distance:.3g} mm apart"
    if not np.allclose(ours, theirs, rtol=1e-3):
        return Mismatch(f"spacing {_numbers(ours)} mm against {_numbers(theirs)} mm, {far}", distance)
    return Mismatch(f"position or direction ({far})", distance)


def _numbers(values: tuple[float, ...]) -> str:
    return " × ".join(f"{v:.4g}" for v in values)
