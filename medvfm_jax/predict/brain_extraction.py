"""The brain in a volume of the head, found by two networks: one for the box it lies in, one for the voxels.

The volume is turned to the nearest axes of RAS and stretched to the window of the first network; the largest component
that it finds, with a tenth of its size around it, is stretched to the window of the second.  Of what that one finds the
largest component is kept and its holes are filled.  Nothing asks for the spacing.

References:
    Fisch et al. 2024, "deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks",
    https://arxiv.org/abs/2308.07003; steps and constants are those of ``deepbet/bet.py`` in its package (MIT).
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax import traces
from medvfm_jax.images import Image
from medvfm_jax.images.image import BadImage
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.predict.ready import Ready

MARGIN = 0.1  # of the box's size, on each side
SEEN = 0.02  # share of a plane that belongs to the brain, above which the plane lies in the box
DARKEST, BRIGHTEST = 0.005, 0.995  # quantiles of the volume
MEAN, STD = 0.449, 0.226  # of the intensities as the networks see them

Box = tuple[slice, slice, slice]


class BrainExtractor:
    """Two networks, compiled when they are first asked.  say: told when one has to be compiled."""

    labels: ClassVar[dict[int, str]] = {0: "background", 1: "brain"}

    def __init__(self, localiser: Ready, network: Ready, say: Callable[[str], None] = lambda text: None):
        self._localiser, self._network = _Network(localiser, say), _Network(network, say)

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """Volume of one channel -> 1 in the brain and 0 elsewhere, on its own grid.

        Raises BadImage where no brain is found, NotFinite for weights that give no numbers.
        """
        volume, back = _upright(image)
        volume = np.nan_to_num(volume)
        small = _stretched(volume, self._localiser.window)
        low, high = np.quantile(small, [DARKEST, BRIGHTEST])
        if not high > low:
            raise BadImage(
                f"{image.path} has one intensity almost everywhere: there is no brain to be found in it."
            )
        found = _largest(self._localiser(_normalised(small, low, high)))
        if not found.any():
            raise BadImage(
                f"No brain was found in {image.path}; the networks know T1-weighted volumes of the head."
            )
        box = box_around(found, volume.shape)
        seen = self._network(_normalised(_stretched(volume[box], self._network.window), low, high))
        labels = np.zeros(volume.shape, np.uint8)
        labels[box] = _filled(_largest(_stretched(seen, volume[box].shape)))
        return back(labels)


def box_around(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> Box:
    """Mask on a small grid -> the box around it, with its margin, on a grid of ``shape``.

    Numbers are those of 32-bit floats, as the package computes them.  Raises BadImage where no plane has enough of it.
    """
    box = []
    for axis, size in enumerate(shape):
        others = tuple(a for a in range(3) if a != axis)
        planes = np.flatnonzero(mask.mean(others, dtype=np.float32) > np.float32(SEEN))
        if not len(planes):
            raise BadImage("What looks like a brain is too small to be one: no box can be put around it.")
        scale = np.float32(size) / np.float32(mask.shape[axis])
        centre = np.round(scale * np.float32((planes[-1] + 1 + planes[0]) / 2))
        length = np.round(np.float32(1 + 2 * MARGIN) * (scale * np.float32(planes[-1] + 1 - planes[0])))
        first, last = int(centre - length / 2), int(centre + length / 2)
        box.append(slice(max(0, first), min(size, last)))
    return tuple(box)


class _Network:
    """Volume of the size of its window -> where the second class is the likelier."""

    def __init__(self, ready: Ready, say: Callable[[str], None]):
        self._ready, self._say, self._program = ready, say, None
        self.window = ready.spec.input_shape[:3]

    def __call__(self, volume: NDArray[np.float32]) -> NDArray[np.bool_]:
        ready = self._ready
        inputs = (ready.params, volume[..., None])
        if self._program is None:
            self._program = traces.program(
                ["brain", *ready.words] if ready.words else None,
                lambda params, seen: ready.adapted().apply(params, {}, seen, None).logits,
                *inputs,
                announce=lambda: self._say(f"compiling {ready.spec.name} ..."),
            )
        logits = finite_logits(self._program(*inputs), ready.spec.name)
        return logits[1] > logits[0]


class _Turned(NamedTuple):
    """How to bring an array on the upright grid back to the image's own."""

    orientation: NDArray

    def __call__(self, array: NDArray) -> NDArray:
        from nibabel import orientations  # takes half a second

        return np.ascontiguousarray(orientations.apply_orientation(array, self.orientation))


def _upright(image: Image) -> tuple[NDArray[np.float32], Callable[[NDArray], NDArray]]:
    """Image -> its only channel with axes to the right, front and top, and the way back."""
    array = np.asarray(image.array[..., 0], np.float32)
    if image.affine is None:
        return array, lambda labels: labels
    from nibabel import orientations

    own = orientations.io_orientation(image.affine)
    if np.isnan(own).any():
        raise BadImage(f"{image.path} does not say where its axes point; save it with a valid affine.")
    right = np.array([[0, 1], [1, 1], [2, 1]])
    return orientations.apply_orientation(array, own), _Turned(orientations.ornt_transform(right, own))


def _stretched(array: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Array of another shape whose voxels are the nearest ones, by the position of their centres."""
    for axis, size in enumerate(shape):
        scale = np.float32(array.shape[axis] / size)
        nearest = np.floor((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
        array = np.take(array, np.minimum(nearest, array.shape[axis] - 1), axis)
    return array


def _normalised(volume: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Intensities clipped to a range, then to the mean and standard deviation that the networks were trained with."""
    clipped = np.clip((volume - np.float32(low)) / np.float32(high - low), 0, 1)
    mean, deviation = clipped.mean(dtype=np.float64), clipped.std(ddof=1, dtype=np.float64)
    return (STD * (clipped - mean) / max(deviation, 1e-12) + MEAN).astype(np.float32)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest component alone; voxels that share a corner are connected."""
    from medvfm_jax.predict.largest_component import (
        keep_largest,  # its scipy.ndimage takes a third of a second
    )

    return keep_largest(mask.astype(np.uint8), (1,)) > 0


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What the mask encloses belongs to it; background is connected through faces."""
    from scipy import ndimage

    return ndimage.binary_fill_holes(mask)
