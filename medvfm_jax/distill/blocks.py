"""Blocks inside an image encoder, in order, and the maps they give."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array

from medvfm_jax.adapters import tap
from medvfm_jax.types import MedvfmError, Params

BLOCK = r"image_encoder/(blocks_\d+|layers_\d+/blocks_\d+|features_\d+|stages_\d+_\d+)"


class NoBlocks(MedvfmError, ValueError):
    """An encoder without blocks that could be compared."""


def block_paths(
    encode: Callable[..., Any], params: Params, image: Any, name: str
) -> dict[str, tuple[int, ...]]:
    """{path of a block: shape of its map}, from the first to the last; nothing is computed.

    Args:
        encode: (params, image, **kw) -> embedding.
        params: arrays or their shapes.
        image: shape of one image.
        name: of the model, for the message.

    Raises:
        NoBlocks: the encoder has none.
    """
    try:
        _, found = jax.eval_shape(tap(encode, BLOCK), params, image)
    except MedvfmError as error:
        raise NoBlocks(f"The encoder of {name} has no blocks that could be compared.") from error
    order = sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])
    return {path: jax.eval_shape(as_map, found[path]).shape for path in order}


def at_depths(paths: Sequence[str], depths: Sequence[float]) -> tuple[str, ...]:
    """The blocks at relative depths in (0, 1]: 1 is the last."""
    return tuple(paths[max(0, math.ceil(depth * len(paths)) - 1)] for depth in depths)


def with_maps(
    encode: Callable[..., Any], paths: Sequence[str]
) -> Callable[..., tuple[Array, tuple[Array, ...]]]:
    """(params, image) -> (embedding, the maps of those blocks, (h, w, c))."""
    if not paths:
        return lambda params, image: (encode(params, image), ())
    tapped = tap(encode, "|".join(map(re.escape, dict.fromkeys(paths))))

    def both(params: Params, image: Array) -> tuple[Array, tuple[Array, ...]]:
        embedding, found = tapped(params, image)
        return embedding, tuple(as_map(found[path]) for path in paths)

    return both


def as_map(y: Array) -> Array:
    """Tokens (n, c) as a square map (h, w, c), without those in front of it (class, registers); a map as it is."""
    if y.ndim == 2:
        side = math.isqrt(len(y))
        return y[len(y) - side**2 :].reshape(side, side, -1)
    return y
