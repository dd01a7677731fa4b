"""How far each layer of encoders looks by attention."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.images import preprocess
from medvfm_jax.models.attention import with_operands
from medvfm_jax.settings.analyze import AttentionDistanceConfig
from medvfm_jax.theory.attention_distance import attention_distance, grid_side, uniform_distance
from medvfm_jax.theory.runs.pictures import open_encoders
from medvfm_jax.train.dense_encoder import BadFeatures, DenseEncoder


class AttentionLayer(NamedTuple):
    """One layer of attention over a grid, or over windows of one.

    Attributes:
        layer: its number among those of the encoder, from 0, in the order in which they run.
        side: tokens along one side of what a query sees: a window, or the whole grid.
        windows: that the grid is cut into; 1 for attention over all of it.
        heads: mean distance of each head over pictures, in sides of a token.
        error: standard error over pictures of the mean over heads.
        uniform: distance of attention that is the same everywhere.
    """

    layer: int
    side: int
    windows: int
    heads: tuple[float, ...]
    error: float
    uniform: float


class AttentionDistance(NamedTuple):
    """What was found of one encoder.

    Attributes:
        model: as it was named.
        layers: those over grids.
        left_out: layers whose queries are not the places they look at.
        seconds: for all pictures, compilation included.
    """

    model: str
    layers: tuple[AttentionLayer, ...]
    left_out: int
    seconds: float


class AttentionDistanceResult(NamedTuple):
    """Encoders, as they were named.

    Attributes:
        data: name of the dataset, "" for pictures of noise.
        images: pictures that were looked at.
        models: one for each encoder.
    """

    data: str
    images: int
    models: tuple[AttentionDistance, ...]


def analyze_attention_distance(
    config: AttentionDistanceConfig, say: Callable[[str], None] = lambda text: None
) -> AttentionDistanceResult:
    """Mean distance between a place and those it attends to, for each layer and head of frozen encoders.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Distances, beside those of attention that is the same everywhere.

    Raises:
        BadFeatures: an encoder without attention over a grid, or with attention that is not finite.
        MedvfmError: settings, data or weights that do not fit.
    """
    encoders, models = open_encoders(config, say), []
    for name, (encoder, pictures) in encoders.each.items():
        start = time.monotonic()
        say(f"{name}: attention of {len(pictures)} pictures")
        layers, left_out = _measured(name, encoder, pictures)
        models.append(AttentionDistance(name, layers, left_out, time.monotonic() - start))
    return AttentionDistanceResult(encoders.data, encoders.images, tuple(models))


def _measured(
    name: str, encoder: DenseEncoder, pictures: Sequence[NDArray]
) -> tuple[tuple[AttentionLayer, ...], int]:
    shapes: list[tuple[int, ...]] = []

    def distances(params, image):
        found = []

        def look(operand: str, weights: Array) -> Array:
            if operand == "p":
                found.append(weights)
            return weights

        with with_operands(look, at_once=True):
            encoder.encode.__wrapped__(params, image)
        shapes[:] = [weights.shape for weights in found]
        return [attention_distance(weights) for weights in found if _over_a_grid(weights.shape)]

    run = jax.jit(distances)
    each = [run(encoder.params, preprocess(encoder.spec, picture)[0]) for picture in pictures]
    over_grids = [(number, shape) for number, shape in enumerate(shapes) if _over_a_grid(shape)]
    if not over_grids:
        raise BadFeatures(f"{name} has no attention over a grid; choose an encoder that has, like dinov2-s.")
    layers = []
    for place, (number, shape) in enumerate(over_grids):
        heads = np.stack([np.asarray(one[place], np.float64) for one in each])
        if not np.isfinite(heads).all():
            raise BadFeatures(
                f"{name} has attention that is not finite; its weights are damaged: use others."
            )
        mean, side = heads.mean(1), grid_side(shape[-1])
        error = float(mean.std(ddof=1) / len(mean) ** 0.5) if len(mean) > 1 else float("nan")
        windows = int(np.prod(shape[:-3], dtype=int))
        layers.append(
            AttentionLayer(
                number, side, windows, tuple(heads.mean(0).tolist()), error, uniform_distance(side)
            )
        )
    return tuple(layers), len(shapes) - len(over_grids)


def _over_a_grid(shape: tuple[int, ...]) -> bool:
    return shape[-2] == shape[-1] and grid_side(shape[-1]) is not None
