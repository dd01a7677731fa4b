"""Cut a volume into pictures, and stack label maps of the pictures back onto the volume's grid."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.image import BadImage, Image


def plane(array: NDArray, axis: int, index: int) -> NDArray:
    """One slice of a volume as a picture.

    Of the two remaining axes the first runs along the width and the second down, as in the arrays SimpleITK
    gives, on which MedSAM was trained.

    Args:
        array: (X, Y, Z, ...).
        axis: along which to cut.
        index: of the slice.

    Returns:
        (H, W, ...).
    """
    return np.take(array, index, axis=axis).swapaxes(0, 1)


def pile(array: NDArray, axis: int) -> NDArray:
    """The slices of a volume as one array, a view; see ``plane``.

    Args:
        array: (X, Y, Z, ...).
        axis: along which to cut.

    Returns:
        (D, H, W, ...).
    """
    return np.moveaxis(array, axis, 0).swapaxes(1, 2)


def unpile(array: NDArray, axis: int) -> NDArray:
    """Inverse of ``pile``, a view.

    Args:
        array: (D, H, W, ...).
        axis: along which the volume was cut.

    Returns:
        (X, Y, Z, ...).
    """
    return np.moveaxis(array.swapaxes(1, 2), 0, axis)


def slices(image: Image, axis: int | None = None) -> Iterator[NDArray]:
    """The slices of a volume as pictures.

    Args:
        image: a volume (X, Y, Z, C).
        axis: along which to cut; by default that of the largest spacing.

    Yields:
        (H, W, C), in order.
    """
    axis = slice_axis(image) if axis is None else axis
    return (plane(image.array, axis, index) for index in range(image.grid[axis]))


def stack(pictures: Iterable[NDArray], like: Image, axis: int | None = None) -> NDArray:
    """Inverse of ``slices`` for label maps.

    Args:
        pictures: label maps (H, W), in order, taken one after the other, so that an iterator need not hold them all.
        like: the volume they were cut from.
        axis: along which it was cut; by default that of the largest spacing.

    Returns:
        (X, Y, Z) on the grid of ``like``, of the type of the first picture.

    Raises:
        BadImage: number or size do not fit.
    """
    axis = slice_axis(like) if axis is None else axis
    planes, count = pile(np.empty(like.grid, np.int32), axis), 0  # memory is taken where it is written
    for count, picture in enumerate(pictures, 1):
        if count == 1:
            planes = pile(np.empty(like.grid, picture.dtype), axis)
        if picture.shape != planes.shape[1:]:
            raise BadImage(
                f"Slices of shape {picture.shape} do not fill a volume of shape {like.grid} along axis {axis}."
            )
        if count <= len(planes):
            planes[count - 1] = picture
    if count != like.grid[axis]:
        raise BadImage(f"{count} slices do not fill a volume of {like.grid[axis]} along axis {axis}.")
    return unpile(planes, axis)
