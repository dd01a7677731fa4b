"""From an image to a model's input frame and back to the image's own grid."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from einops import rearrange, repeat
from numpy.typing import NDArray

from medvfm_jax.images.image import BadImage
from medvfm_jax.images.intensity import to_unit
from medvfm_jax.images.sampling import Filter, dense_matrix, matrix, resize
from medvfm_jax.printable import counted
from medvfm_jax.types import IGNORE, ModelSpec

Limits = tuple[float, float]

_ROUNDING = 1e-6  # of the greatest intensity: what differs by no more is a single intensity, resampled


class Frame(NamedTuple):
    """How an image lies in a model's input: resized, zeros below and to the right.

    Height and width alone are resized: slices of a slab stay slices.

    Attributes:
        original: (height, width) of the image, (depth, height, width) of a slab or a patch.
        scaled: the same of the image within the model's input.
        input_shape: of the model's input, in pixels.
        logits_shape: of the model's low-resolution logits.
    """

    original: tuple[int, ...]
    scaled: tuple[int, ...]
    input_shape: tuple[int, ...]
    logits_shape: tuple[int, ...]

    @property
    def scale(self) -> NDArray[np.float64]:
        """Model pixels per image pixel, (x, y)."""
        (height, width), (new_height, new_width) = self.original[-2:], self.scaled[-2:]
        return np.array([new_width / width, new_height / height])

    @property
    def logit_sides(self) -> tuple[float, float]:
        """Pixels of the input under one logit, (height, width)."""
        height, width = (n / m for n, m in zip(self.input_shape[-2:], self.logits_shape[-2:]))
        return height, width

    @property
    def least_object(self) -> float:
        """Pixels that an object of a picture needs to show: as many as make one logit, at least one."""
        x, y = self.scale * self.logits_shape[:-3:-1] / self.input_shape[:-3:-1]
        return max(1.0, 1 / (x * y))


def frame_of(spec: ModelSpec, *shape: int) -> Frame:
    """The frame an image of this shape gets: the longest side fitted, both sides stretched, or nothing resized.

    Of a model that sees tiles of pictures: the frame of a tile, or of what there is of it at the picture's border,
    which is enlarged as much as all others.

    Args:
        spec: of the model.
        *shape: (H, W), or (D, H, W) with as many slices as the model's input has; that of the input where nothing is
            resized; no side larger than ``spec.tile``.

    Returns:
        The frame.

    Raises:
        BadImage: a shape that does not fit the model.
    """
    *depth, height, width = shape
    sides = spec.input_shape[-3:-1]
    fits = len(shape) == spec.rank and tuple(depth) == spec.input_shape[:-3]
    if not fits or (spec.resize == "none" and (height, width) != sides):
        raise BadImage(f"Voxels of shape {shape} do not fit {spec.name}, whose input is {spec.size}.")
    if spec.tile is not None:
        if max(height, width) > spec.tile:
            raise BadImage(f"A part of {height} x {width} pixels is larger than a tile of {spec.tile}.")
        scaled = tuple(max(1, int(n * side / spec.tile + 0.5)) for n, side in zip((height, width), sides))
    elif spec.resize in ("stretch", "none"):
        scaled = sides
    else:
        factor = min(sides[0] / height, sides[1] / width)
        scaled = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
    return Frame(shape, (*depth, *scaled), spec.input_shape[:-1], spec.logits_shape)


def preprocess(
    spec: ModelSpec, image: NDArray, limits: Limits | None = None
) -> tuple[NDArray[np.float32], Frame]:
    """Picture -> model input.

    A model of slabs gets (D, H, W, C), each slice prepared as a picture; a patch keeps its voxels and channels.

    Greyscale is repeated, of more than three channels the first three are used; ``spec.normalise`` then is
    "minmax": [0, 1] over this image, after resizing (MedSAM, LiteMedSAM), all 0 if it is evenly coloured;
    "mean_std_255": 0..255 minus ``mean``, divided by ``std`` (SAM); "mean_std_unit": the same on 0..1
    (ImageNet); "unit": 0..1, unchanged; "z_scores": minus the mean of the numbers above 0 of this image or patch,
    divided by their standard deviation (SAM-Med3D), or by 1 if they are all the same.
    What 0..255 or 0..1 means for 16-bit and float images: see ``intensity.to_unit``.
    Resizing averages areas for "minmax" models (OpenCV's INTER_AREA, on which LiteMedSAM was trained, without
    its rounding to 8 bits) and is linear with antialiasing for the others.

    Args:
        spec: of the model.
        image: (H, W, C) or (H, W), any number type.
        limits: the (least, greatest) of 0..1 that "minmax" takes in place of those of this image; see
            ``images.tiles``.

    Returns:
        (input (S, S, 3) float32, frame of the image).

    Raises:
        BadImage: an array of another shape.
    """
    if spec.rank == 2:
        return _picture(spec, image, limits)
    frame = frame_of(spec, *image.shape[:3])
    if spec.resize == "none":
        return _patch(spec, image), frame
    one = replace(spec, input_shape=spec.input_shape[1:], logits_shape=spec.logits_shape[1:])
    return np.stack([_picture(one, slice_)[0] for slice_ in image]), frame


def _patch(spec: ModelSpec, patch: NDArray) -> NDArray[np.float32]:
    """Patch (D, H, W, C) with numbers from 0 to 1 -> the model's input."""
    if patch.shape[-1] != spec.input_shape[-1]:
        raise BadImage(
            f"The volume has {counted(patch.shape[-1], 'channel')}; {spec.name} was built for "
            f"{spec.input_shape[-1]}."
        )
    return normalise(spec, patch.astype(np.float32))


def _picture(
    spec: ModelSpec, image: NDArray, limits: Limits | None = None
) -> tuple[NDArray[np.float32], Frame]:
    unit = unit_channels(image)
    frame = frame_of(spec, *unit.shape[:2])
    scaled = resize(unit, *frame.scaled, filter_of(spec))
    scaled = repeat(scaled[..., 0], "h w -> h w c", c=3) if scaled.shape[-1] == 1 else scaled
    out = np.zeros((*frame.input_shape, 3), np.float32)
    out[: frame.scaled[0], : frame.scaled[1]] = normalise(spec, scaled, limits)
    return out, frame


def unit_channels(image: NDArray) -> NDArray[np.float32]:
    """Picture -> what a model sees of it in 0..1, (H, W, 3), or (H, W, 1) in grey, which is resized once."""
    three = three_channels(image)
    return to_unit(three[..., :1] if image.ndim == 2 or image.shape[-1] == 1 else three)


def filter_of(spec: ModelSpec) -> Filter:
    """How images are resized for a model."""
    return "area" if spec.normalise == "minmax" else "linear"


def normalise(
    spec: ModelSpec, unit: NDArray[np.float32], limits: Limits | None = None
) -> NDArray[np.float32]:
    """Picture (H, W, 3) in 0..1 -> the numbers the model expects; see ``preprocess``."""
    if spec.normalise == "minmax":
        low, high = (unit.min(), unit.max()) if limits is None else map(np.float32, limits)
        if high - low <= _ROUNDING * max(abs(low), abs(high)):
            return np.zeros_like(unit)
        return (unit - low) / np.maximum(high - low, np.float32(1e-8))
    if spec.normalise == "unit":
        return unit
    if spec.normalise == "z_scores":
        shown = unit[unit > 0].astype(np.float64)
        if not shown.size:
            return unit
        deviation = shown.std()
        if deviation <= _ROUNDING * shown.max():
            return (unit - shown.mean()).astype(np.float32)
        return ((unit - shown.mean()) / max(deviation, 1e-8)).astype(np.float32)
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    return ((unit * np.float32(255) if spec.normalise == "mean_std_255" else unit) - mean) / std


def three_channels(image: NDArray) -> NDArray:
    """(H, W) or (H, W, C) -> (H, W, 3): greyscale repeated, two channels and their mean, the first three.

    Raises BadImage for other shapes.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or min(image.shape) < 1:
        raise BadImage(f"An array of shape {image.shape} is no picture; expected (H, W) or (H, W, C).")
    channels = image.shape[-1]
    if channels == 1:
        return np.broadcast_to(image, (*image.shape[:2], 3))
    if channels == 2:
        mean = image.astype(np.float32).mean(-1, keepdims=True).astype(image.dtype)
        return np.concatenate([image, mean], axis=-1)
    return image[..., :3]


def restore(frame: Frame, logits: NDArray) -> NDArray[np.float32]:
    """Low-resolution logits -> logits on the image's own grid.

    Of slabs and patches (..., d, h, w) -> (..., D, H, W).

    The padding is cut away and the rest interpolated linearly, in one step (SAM's reference goes through the
    input size first), with antialiasing where the image is smaller than the logits.

    Args:
        frame: of the image.
        logits: (..., h, w).

    Returns:
        (..., H, W) float32 numpy.
    """
    logits = np.asarray(logits, np.float32)
    if len(frame.original) == 3 and frame.original == frame.logits_shape:
        return logits
    h, w = logits.shape[-2:]
    height, width = frame.original[-2:]
    rows = dense_matrix(h, height, "linear", 0.0, frame.scaled[-2] * h / frame.input_shape[-2])
    columns = dense_matrix(w, width, "linear", 0.0, frame.scaled[-1] * w / frame.input_shape[-1])
    return (rows @ logits) @ columns.T


def to_model_points(frame: Frame, xy: NDArray) -> NDArray[np.float32]:
    """Points in pixels of the image -> pixels of the model's input.

    As in SAM, number i means pixel i, and the model adds the half pixel to its centre; so coordinates scale
    without an offset.

    Args:
        frame: of the image.
        xy: (..., 2) in pixels of the image.

    Returns:
        (..., 2) in pixels of the model's input.
    """
    return (np.asarray(xy, np.float64) * frame.scale).astype(np.float32)


def from_model_points(frame: Frame, xy: NDArray) -> NDArray[np.float32]:
    """Inverse of ``to_model_points``.

    Args:
        frame: of the image.
        xy: (..., 2) in pixels of the model's input.

    Returns:
        (..., 2) in pixels of the image.
    """
    return (np.asarray(xy, np.float64) / frame.scale).astype(np.float32)


def to_target(frame: Frame, masks: NDArray, fill: float = IGNORE) -> NDArray[np.float32]:
    """Masks -> share of each logit that they cover, 0 to 1.

    Of slabs and patches (..., D, H, W) -> (..., D, h, w): slices are one to one.

    The mean over that part of a logit that lies on the image, so areas are conserved and nothing moves. (The pixel
    under a logit's centre would be half a pixel off wherever an even number of pixels makes one logit.) Where a
    logit lies within one pixel, it is 0 or 1. A logit is padding if its centre is, except the first.

    Args:
        frame: of the image.
        masks: (..., H, W) on the image's grid.
        fill: value of the padding.

    Returns:
        (..., h, w) float32 at the resolution of the logits.
    """
    rows, columns = (
        matrix(original, inside, "area", 0.0, inside * side * original / scaled)
        for original, scaled, size, side in zip(
            frame.original[-2:], frame.scaled[-2:], frame.logits_shape[-2:], frame.logit_sides
        )
        for inside in [max(1, int(((np.arange(size) + 0.5) * side < scaled).sum()))]
    )
    flat = np.asarray(masks, np.float32).reshape(-1, *frame.original[-2:])
    tall = rows @ rearrange(flat, "n H W -> H (n W)")
    small = columns @ rearrange(tall, "h (n W) -> W (n h)", W=frame.original[-1])
    share = rearrange(small, "w (n h) -> n h w", h=len(tall))
    out = np.full((len(flat), *frame.logits_shape[-2:]), fill, np.float32)
    out[:, : share.shape[1], : share.shape[2]] = np.where(share > 1 - 1e-5, 1, share)  # sums of thirds miss 1
    return out.reshape(*masks.shape[:-2], *frame.logits_shape[-2:])
