"""How much of a picture the middle of an encoder's map depends on."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import preprocess
from medvfm_jax.settings.analyze import ReceptiveFieldConfig
from medvfm_jax.theory.receptive_field import Extent, extent, squared_gradient
from medvfm_jax.theory.runs.pictures import open_encoders
from medvfm_jax.train.dense_encoder import BadFeatures, DenseEncoder, on_picture


class ReceptiveField(NamedTuple):
    """Size of the receptive field of one encoder, in pixels of its input.

    Attributes:
        model: as it was named.
        side: longest side of the input.
        stride: pixels from one place of the map to the next.
        field: of the mean over pictures.
        error: standard errors over pictures.
        seconds: for all pictures, compilation included.
    """

    model: str
    side: int
    stride: float
    field: Extent
    error: Extent
    seconds: float


class ReceptiveFieldResult(NamedTuple):
    """Encoders, as they were named.

    Attributes:
        data: name of the dataset, "" for pictures of noise.
        images: pictures whose derivatives were taken.
        models: one for each encoder.
    """

    data: str
    images: int
    models: tuple[ReceptiveField, ...]


def analyze_receptive_field(
    config: ReceptiveFieldConfig, say: Callable[[str], None] = lambda text: None
) -> ReceptiveFieldResult:
    """Differentiate the middle place of each encoder's map with respect to its input.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Deviation and size of the effective receptive field of each encoder.

    Raises:
        BadFeatures: derivatives that are all 0 or not finite.
        MedvfmError: settings, data or weights that do not fit.
    """
    encoders, models = open_encoders(config, say), []
    for name, (encoder, pictures) in encoders.each.items():
        start = time.monotonic()
        say(f"{name}: derivatives of {len(pictures)} pictures")
        try:
            field, error = receptive_field(encoder, pictures, probes=config.probes, seed=config.seed)
        except ValueError as failure:
            raise BadFeatures(f"{name} has no receptive field: {failure}; check its weights.") from failure
        side, stride = encoder.spec.input_size, encoder.spec.input_shape[0] / encoder.spec.logits_shape[0]
        models.append(ReceptiveField(name, side, stride, field, error, time.monotonic() - start))
    return ReceptiveFieldResult(encoders.data, encoders.images, tuple(models))


def receptive_field(
    encoder: DenseEncoder, pictures: Sequence[NDArray], *, probes: int = 4, seed: int = 0
) -> tuple[Extent, Extent]:
    """Effective receptive field of the middle place of an encoder's map.

    Args:
        encoder: whose map is differentiated.
        pictures: (H, W, C) each, at least one; the squares are averaged over them.
        probes: vector-Jacobian products of each picture, each with other random signs of the map's channels.
        seed: of the signs.

    Returns:
        Size of the field of the mean over pictures, in pixels of the encoder's input, and standard errors by leaving
        out one picture after the other.

    Raises:
        ValueError: derivatives that are all 0 or not finite.

    References:
        Luo et al., NeurIPS 2016, https://arxiv.org/abs/1701.04128, section 2.
    """

    @jax.jit
    def squared(params, image, place, key):
        return squared_gradient(lambda x: encoder.encode(params, x), image, place, key)

    stride = np.array(encoder.spec.input_shape[:2]) / encoder.spec.logits_shape
    found, shifts = [], []
    for number, picture in enumerate(pictures):
        prepared, frame = preprocess(encoder.spec, picture)
        place = np.array([_middle(on_picture(frame).any(axis)) for axis in (1, 0)])
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), probes)
        found.append(np.mean([squared(encoder.params, prepared, place, key) for key in keys], 0, np.float64))
        shifts.append(place)
    centre, scale = shifts[0], max(one.max() for one in found)
    moved = [
        _moved(one / max(scale, 1e-300), np.round((centre - place) * stride).astype(int))
        for one, place in zip(found, shifts)
    ]
    at, n = (centre + 0.5) * stride - 0.5, len(moved)
    total = np.sum(moved, 0)
    whole = extent(total**0.5, at)
    without = np.array([extent(np.maximum(total - one, 0) ** 0.5, at) for one in moved])
    error = ((n - 1) / n * np.square(without - without.mean(0)).sum(0)) ** 0.5
    return whole, Extent(*map(float, error))


def _middle(inside: NDArray) -> int:
    rows = np.flatnonzero(inside)
    return int(rows[len(rows) // 2])


def _moved(image: NDArray, by: NDArray) -> NDArray:
    """An image shifted by whole pixels, 0 where nothing comes from."""
    out = np.zeros_like(image)
    to = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip(by, image.shape))
    of = tuple(slice(max(-d, 0), n + min(-d, 0)) for d, n in zip(by, image.shape))
    out[to] = image[of]
    return out
