"""Where voxels lie: spacing, grids, the axis to slice along, resampling with its affine."""

from typing import NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.images.image import BadImage, Image

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
    spacing = image.spacing
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


def resample(image: Image, spacing: tuple[float, float, float], *, labels: bool = False) -> Image:
    """Volume -> the same field of view with another spacing (mm); order 3, or nearest for label maps.

    The outer edges of the volume stay where they are, up to half a voxel of rounding. Raises BadImage for
    pictures, which have no spacing.
    """
    if image.affine is None or image.spacing is None:
        raise BadImage("A picture without spacing cannot be resampled to millimetres.")
    if min(spacing) <= 0:
        raise BadImage(f"A spacing of {spacing} mm is not positive.")
    factor = np.asarray(image.spacing) / np.asarray(spacing)
    shape = np.maximum(1, np.round(np.asarray(image.grid) * factor)).astype(int)
    ratio = np.asarray(spacing) / np.asarray(image.spacing)  # exactly the spacing asked for
    offset = ratio / 2 - 0.5  # centre of the first new voxel, in old voxel indices
    array = _resampled(image.array, ratio, offset, tuple(shape), 0 if labels else 3)
    affine = image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3] * ratio
    affine[:3, 3] = image.affine[:3, :3] @ offset + image.affine[:3, 3]
    return Image(array, tuple(float(s) for s in spacing), affine, image.path)


def onto_grid(image: Image, like: Image, *, labels: bool = False) -> Image:
    """Volume -> the same content on the grid of ``like``; 0 outside its field of view. Raises BadImage."""
    if image.affine is None or like.affine is None:
        raise BadImage("Only volumes with an affine can be moved onto another grid.")
    mapping = np.linalg.inv(image.affine) @ like.affine
    order = 0 if labels else 3
    channels = [
        ndimage.affine_transform(
            image.array[..., c].astype(np.float32 if order else image.array.dtype),
            mapping[:3, :3], mapping[:3, 3], like.grid, order=order, mode="constant",
        )
        for c in range(image.array.shape[-1])
    ]  # fmt: skip
    return Image(np.stack(channels, -1), like.spacing, like.affine, image.path)


def to_canonical(image: Image) -> Image:
    """Volume -> the same voxels with axes pointing right, anterior, superior (RAS+), by flips and swaps."""
    if image.affine is None:
        return image
    orientation = nibabel.io_orientation(image.affine)
    array = nibabel.apply_orientation(image.array, orientation)
    affine = image.affine @ nibabel.orientations.inv_ornt_aff(orientation, image.grid)
    return Image(np.ascontiguousarray(array), spacing_of(affine), affine, image.path)


def from_canonical(array: NDArray, like: Image) -> NDArray:
    """Undo ``to_canonical``: array (X, Y, Z, ...) in RAS+ order -> the axis order of ``like``."""
    if like.affine is None:
        return array
    there = nibabel.io_orientation(like.affine)
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), there)
    return np.ascontiguousarray(nibabel.apply_orientation(array, back))


def _resampled(
    array: NDArray, ratio: NDArray, offset: NDArray, shape: tuple[int, ...], order: int
) -> NDArray:
    kind = np.float32 if order else array.dtype
    channels = [
        ndimage.affine_transform(
            array[..., c].astype(kind), ratio, offset, output_shape=shape, order=order, mode="nearest"
        )
        for c in range(array.shape[-1])
    ]
    return np.stack(channels, -1)


def _numbers(values: tuple[float, ...]) -> str:
    return " × ".join(f"{v:.4g}" for v in values)
