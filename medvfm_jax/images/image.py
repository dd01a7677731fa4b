"""What a picture or a volume is here: an array that never loses where it lies in space."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError

TURNED = "turned or mirrored as the EXIF orientation says, as viewers show them; masks must fit that picture"
TWO_FORMS = "qform and sform place the voxels differently; the sform was used"
SLANTED = "slices lie at a slant (tilted gantry), which a qform cannot say; masks get an sform only"
NO_SIZE = "the header gives a voxel no size, so its edges count as 1 and nothing is known in mm"
LEFT_OUT = "files of the folder that are no DICOM images were left out"


class BadImage(MedvfmError, ValueError):
    """A file that cannot be used as an image, or a label map that cannot be written."""


class Image(NamedTuple):
    """A picture or a volume with its geometry.

    Attributes:
        array: picture (H, W, C), row 0 on top; volume (X, Y, Z, C) in the axis order of the NIfTI file.
        spacing: size of a pixel along each spatial axis of ``array``, in mm; None if the file does not say.
        affine: voxel index -> position in mm, (4, 4), in NIfTI's RAS+ frame; None for pictures.
        path: of the file.
        notes: what a user should know about how the file was read, such as TURNED; the same words for every file, so
            that a command can count them.
    """

    array: NDArray
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        """Spatial shape: (H, W) or (X, Y, Z)."""
        return self.array.shape[:-1]

    @property
    def is_volume(self) -> bool:
        """Whether the array is (X, Y, Z, C)."""
        return self.array.ndim == 4
