"""Bring intensities of any modality into the range 0..1."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.catalog import Catalog
from medvfm_jax.types import MedvfmError


class UnknownWindow(MedvfmError, ValueError):
    """A name of a CT window that does not exist."""


class Window(NamedTuple):
    """Range of Hounsfield units that is shown, from level - width/2 to level + width/2."""

    width: float
    level: float


# Abdomen: MedSAM's preprocessing. The others: radiological convention.
CT_WINDOWS: Catalog[Window] = Catalog(
    "CT window",
    {
        "abdomen": Window(400, 40),
        "lung": Window(1500, -600),
        "brain": Window(80, 40),
        "bone": Window(1800, 400),
        "mediastinum": Window(350, 50),
    },
    UnknownWindow,
)


def window(array: NDArray, chosen: str | Window) -> NDArray[np.float32]:
    """Hounsfield units, any shape -> 0..1 within a window, clipped outside. Raises UnknownWindow."""
    if isinstance(chosen, str):
        chosen = CT_WINDOWS[chosen]
    low = chosen.level - chosen.width / 2
    return np.clip((array.astype(np.float32) - low) / np.float32(chosen.width), 0, 1)


class Range(NamedTuple):
    """The intensities that become 0 and 1; without a span everything becomes 0."""

    bottom: float
    span: float

    def __call__(self, array: NDArray) -> NDArray[np.float32]:
        """Any shape -> 0..1, clipped outside."""
        if not self.span > 0:
            return np.zeros(array.shape, np.float32)
        # Subtracted in float64: 32-bit integers and large offsets lose their detail otherwise.
        return np.clip((array.astype(np.float64) - self.bottom) / self.span, 0, 1).astype(np.float32)


def percentile_range(array: NDArray, low: float = 0.5, high: float = 99.5, *, nonzero: bool = True) -> Range:
    """The range between two percentiles; nonzero: of the voxels that are not 0, as MedSAM does for MR (0 is air)."""
    values = array[array != 0] if nonzero else array.reshape(-1)
    if values.size == 0:
        return Range(0.0, 0.0)
    # What was picked out is a copy, which may be put in order where it lies.
    bottom, top = np.percentile(values, [low, high], overwrite_input=nonzero)
    # A mostly constant image has no range between its percentiles; then the whole range counts.
    if top <= bottom:
        bottom, top = values.min(), values.max()
    return Range(float(bottom), float(top) - float(bottom))


def z_score_range(array: NDArray) -> Range:
    """The range of four standard deviations about the mean: z-scores, clipped at 4 and brought into 0..1.

    An affine map of nnU-Net's z-scores, which augmentation can treat like any picture in 0..1.
    """
    if array.min() == array.max():  # whose mean is off by rounding
        return Range(float(array.min()), 0.0)
    mean, deviation = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
    return Range(mean - 4 * deviation, 8 * deviation)


def is_hounsfield(channel_name: str) -> bool:
    """Whether a channel of this name holds Hounsfield units, as nnU-Net names them."""
    return channel_name.strip().lower() == "ct"


def percentiles(
    array: NDArray, low: float = 0.5, high: float = 99.5, *, nonzero: bool = True
) -> NDArray[np.float32]:
    """Any shape -> 0..1 between two percentiles, clipped outside; see ``percentile_range``."""
    return percentile_range(array, low, high, nonzero=nonzero)(array)


def minmax(array: NDArray) -> NDArray[np.float32]:
    """Any shape -> 0..1 from the least to the greatest value; a constant becomes 0."""
    return percentiles(array, 0, 100, nonzero=False)


def to_unit(array: NDArray) -> NDArray[np.float32]:
    """Picture of any number type -> 0..1.

    bool and uint8: a fixed scale. Floats between 0 and 1: unchanged. Anything else (16 bits, Hounsfield
    units, raw MR) has no agreed white: from the least to the greatest value of this picture.
    """
    if array.dtype == bool:
        return array.astype(np.float32)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        return array.astype(np.float32)
    return minmax(array)


class VolumeScale:
    """How a volume (X, Y, Z, C) becomes 0..1, each channel over the whole volume; applied to any part of it.

    Channels named "CT" (as nnU-Net names them) are Hounsfield units seen through ``ct_window``; the others
    are scaled between the 0.5 and 99.5 percentiles of their non-zero voxels (MedSAM's rule for MR).
    A scaled volume takes four bytes per voxel and channel, and twelve more while it is made; a part takes little.

    intensity: instead, of each channel the (least, greatest) intensity, or None for its z-scores over the volume, of
    which -4 to 4 become 0 to 1.
    """

    def __init__(
        self,
        array: NDArray,
        channel_names: tuple[str, ...] = (),
        ct_window: str = "abdomen",
        intensity: Sequence[tuple[float, float] | None] | None = None,
    ):
        self._channels: list[Callable[[NDArray], NDArray[np.float32]]] = []
        for c in range(array.shape[-1]):
            if intensity is not None:
                chosen = intensity[c]
                self._channels.append(
                    z_score_range(array[..., c])
                    if chosen is None
                    else Range(chosen[0], chosen[1] - chosen[0])
                )
                continue
            is_ct = c < len(channel_names) and is_hounsfield(channel_names[c])
            self._channels.append(
                partial(window, chosen=ct_window) if is_ct else percentile_range(array[..., c])
            )

    def __call__(self, part: NDArray) -> NDArray[np.float32]:
        """Part (..., C) -> 0..1 float32, the numbers it has in the scaled volume."""
        out = np.empty(part.shape, np.float32)
        for c, scaled in enumerate(self._channels):
            out[..., c] = scaled(part[..., c])
        return out


def volume_to_unit(
    array: NDArray,
    channel_names: tuple[str, ...] = (),
    ct_window: str = "abdomen",
    scale: VolumeScale | None = None,
) -> NDArray[np.float32]:
    """Volume (X, Y, Z, C) -> 0..1 float32, see ``VolumeScale``; a slab of it at a time.  scale: if not the usual."""
    scale, out = scale or VolumeScale(array, channel_names, ct_window), np.empty(array.shape, np.float32)
    for x in range(len(array)):
        out[x] = scale(array[x])
    return out
