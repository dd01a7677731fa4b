"""What a picture or a volume is here: an array that never loses where it lies in space."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError


class BadImage(MedvfmError, ValueError):
    """A file that cannot be used as an image, or a label map that cannot be written."""


class Image(NamedTuple):
    """A picture or a volume with its geometry.

    array: picture (H, W, C), row 0 on top; volume (X, Y, Z, C) in the axis order of the NIfTI file.
    spacing: size of a pixel along each spatial axis of ``array``, in mm; None if the file does not say.
    affine: voxel index -> position in mm, (4, 4), in NIfTI's RAS+ frame; None for pictures.
    """

    array: NDArray
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    path: Path | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Spatial shape: (H, W) or (X, Y, Z)."""
        return self.array.shape[:-1]

    @property
    def is_volume(self) -> bool:
        """Whether the array is (X, Y, Z, C)."""
        return self.array.ndim == 4
