"""Random changes of a picture together with its label maps; numpy, driven by the generator of one example."""

import dataclasses

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.catalog import Catalog
from medvfm_jax.images.intensity import to_unit
from medvfm_jax.images.sampling import resize
from medvfm_jax.types import IGNORE, MedvfmError


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of a picture; probabilities are per picture, ranges are uniform where nothing else is said.

    Attributes:
        flip_horizontal: whether the picture is mirrored left to right with probability 1/2.
        flip_vertical: the same, top to bottom.
        quarter_turns: whether it is turned by 90 degrees with probability 1/2; with both flips this gives all eight
            symmetries.
        affine: probability of a rotation, zoom and shift, all at once.
        rotate: largest angle, degrees, either way.
        zoom: range of the factor, log-uniform.
        shift: largest shift, as a share of each side.
        intensity: probability of each of the four changes of intensity, drawn independently; intensities are scaled
            to 0..1 before.
        gamma: range of the exponent, log-uniform.
        contrast: range of the gain about the mean.
        brightness: largest offset, either way.
        noise: largest standard deviation of Gaussian noise.
    """

    flip_horizontal: bool = True
    flip_vertical: bool = True
    quarter_turns: bool = True
    affine: float = 0.5
    rotate: float = 20.0
    zoom: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.08
    intensity: float = 0.3
    gamma: tuple[float, float] = (0.7, 1.5)
    contrast: tuple[float, float] = (0.75, 1.25)
    brightness: float = 0.1
    noise: float = 0.05


FULL = AugmentConfig()
FLIPS = AugmentConfig(quarter_turns=False, affine=0.0, intensity=0.0)
NONE = AugmentConfig(False, False, False, affine=0.0, intensity=0.0)
UPRIGHT = AugmentConfig(flip_horizontal=False, flip_vertical=False, quarter_turns=False)


class UnknownAugmentation(MedvfmError, ValueError):
    """A name of random changes that does not exist."""


AUGMENTATIONS: Catalog[AugmentConfig] = Catalog(
    "augmentation", {"none": NONE, "flips": FLIPS, "upright": UPRIGHT, "full": FULL}, UnknownAugmentation
)


def usual_augmentation(dimension: int) -> str:
    """Name of the augmentation for pictures or for slices of volumes.

    Microscopy has no preferred orientation; anatomy has, and labels depend on it: after mirrors and quarter
    turns the front of the hippocampus looks like its back.

    Args:
        dimension: 2 for pictures, 3 for volumes.

    Returns:
        "full" for pictures, "upright" (no flips, no quarter turns) for volumes.
    """
    return "full" if dimension == 2 else "upright"


def augment(
    rng: np.random.Generator,
    config: AugmentConfig,
    image: NDArray,
    maps: tuple[NDArray | None, ...],
    *,
    longest: int,
    outside: tuple[int, ...],
) -> tuple[NDArray, tuple[NDArray | None, ...]]:
    """Picture (H, W, C) and maps (H, W) -> the same after one random change.

    Pictures with a side beyond ``longest`` are shrunk to it first: the model sees no more. Maps are moved with
    nearest neighbours, and shrunk by the same step; what comes into view from outside the picture is 0 in it and
    ``outside[i]`` in map i.
    Flips keep the number type; the rest gives float32 in 0..1. The generator is advanced by the same number
    of draws whatever is switched on and happens: options shift neither each other's luck nor that of prompts.
    """
    flips = (config.flip_horizontal, config.flip_vertical, config.quarter_turns)
    horizontal, vertical, turn = (bool(u) and wanted for u, wanted in zip(rng.integers(0, 2, 3), flips))
    arrays = [image, *maps]
    if horizontal:
        arrays = [None if a is None else a[:, ::-1] for a in arrays]
    if vertical:
        arrays = [None if a is None else a[::-1] for a in arrays]
    if turn:
        arrays = [None if a is None else np.rot90(a) for a in arrays]
    image, maps = _affine(rng, config, arrays[0], tuple(arrays[1:]), longest, outside)
    return _intensity(rng, config, image), maps


def augment_slab(
    rng: np.random.Generator,
    config: AugmentConfig,
    image: NDArray,
    maps: tuple[NDArray | None, ...],
    *,
    longest: int,
    outside: tuple[int, ...],
) -> tuple[NDArray, tuple[NDArray | None, ...]]:
    """Slab or patch (D, H, W, C) and maps (D, H, W) -> the same after one random change of all its slices.

    The slices are the channels of one picture: they are turned, zoomed and made darker together.
    """
    depth, present = len(image), [m for m in maps if m is not None]
    planes = tuple(plane for m in present for plane in m)
    fills = tuple(fill for m, fill in zip(maps, outside) if m is not None for _ in range(depth))
    picture, moved = augment(
        rng, config, rearrange(image, "d h w c -> h w (d c)"), planes, longest=longest, outside=fills
    )
    moved = [np.stack(moved[i : i + depth]) for i in range(0, len(moved), depth)]
    back = tuple(None if m is None else moved.pop(0) for m in maps)
    return rearrange(picture, "h w (d c) -> d h w c", d=depth), back


def _affine(
    rng: np.random.Generator,
    config: AugmentConfig,
    image: NDArray,
    maps: tuple[NDArray | None, ...],
    longest: int,
    outside: tuple[int, ...],
) -> tuple[NDArray, tuple[NDArray | None, ...]]:
    chance, angle, *shift = rng.uniform(-1, 1, 4)
    zoom = np.exp(rng.uniform(*np.log(config.zoom)))
    if (chance + 1) / 2 >= config.affine:
        return image, maps
    full = image.shape[:2]
    image = _shrunk(to_unit(image), longest)
    height, width = image.shape[:2]
    angle = np.deg2rad(angle * config.rotate)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    centre = np.array([height - 1, width - 1]) / 2
    offset = centre - turn @ (centre + np.array(shift) * config.shift * [height, width])
    moved = np.stack(
        [ndimage.affine_transform(image[..., c], turn, offset, order=1) for c in range(image.shape[-1])], -1
    )
    # Nearest neighbours of all maps from one table of indices into the picture before it was shrunk.
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1) @ turn.T + offset
    grid = (grid + 0.5) * np.array(full) / (height, width) - 0.5
    rows, columns = np.moveaxis(np.rint(grid).astype(np.intp), -1, 0)
    inside = (rows >= 0) & (rows < full[0]) & (columns >= 0) & (columns < full[1])
    rows, columns = np.clip(rows, 0, full[0] - 1), np.clip(columns, 0, full[1] - 1)
    return moved, tuple(
        None if m is None else np.where(inside, m[rows, columns], np.asarray(fill, m.dtype))
        for m, fill in zip(maps, outside)
    )


def _shrunk(image: NDArray, longest: int) -> NDArray:
    height, width = image.shape[:2]
    if max(height, width) <= longest:
        return image
    factor = longest / max(height, width)
    return resize(image, max(1, round(height * factor)), max(1, round(width * factor)), "area")


def _intensity(rng: np.random.Generator, config: AugmentConfig, image: NDArray) -> NDArray:
    happens = rng.uniform(0, 1, 4) < config.intensity
    gamma = np.exp(rng.uniform(*np.log(config.gamma)))
    gain, offset, noise = (
        rng.uniform(*config.contrast),
        rng.uniform(-1, 1) * config.brightness,
        rng.uniform(0, config.noise),
    )
    of_noise = np.random.default_rng(rng.integers(1 << 63))  # as many numbers as pixels, but one draw
    if config.intensity <= 0:
        return image
    unit = to_unit(image)
    if happens[0]:
        unit = unit ** np.float32(gamma)
    if happens[1]:
        mean = unit.mean()
        unit = (unit - mean) * np.float32(gain) + mean
    if happens[2]:
        unit = unit + np.float32(offset)
    if happens[3]:
        unit = unit + of_noise.standard_normal(unit.shape, np.float32) * np.float32(noise)
    return np.clip(unit, 0, 1)


LABEL_OUTSIDE, INSTANCE_OUTSIDE = IGNORE, 0  # what a rotation brings into view is unlabelled
