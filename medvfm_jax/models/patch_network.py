"""Networks of patches of a volume that are trained from scratch, as the functions of a ``Model``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.types import ModelSpec


def build_patch_network(
    spec: ModelSpec,
    root_of: Callable[[int, Any], nn.Module],
    multiple: int,
    *,
    classes: int = 2,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Model:
    """A network ``apply(params, patch (D, H, W, channels)) -> Prediction(logits (classes, D, H, W))``.

    Args:
        spec: of the model with its own window; its embedding has as many channels as the root's features.
        root_of: (classes, dtype) -> Linen root with ``encode``, volume -> features of the same sides, and ``decode``.
        multiple: what the sides of a window are multiples of, voxels.
        classes: outputs, the background included.
        window: (D, H, W), voxels; None for that of ``spec``.
        channels: of the volume.
        dtype: of the computation.

    Returns:
        The model; prompts are ignored.

    Raises:
        BadModelOption: a window, a number of classes or of channels that does not fit.
    """
    window = tuple(window or spec.input_shape[:3])
    if len(window) != 3 or any(type(n) is not int or n < multiple or n % multiple for n in window):
        raise BadModelOption(
            f"{spec.name} needs a window of three multiples of {multiple}, not {' '.join(map(str, window))}."
        )
    if classes < 1 or channels < 1:
        raise BadModelOption(
            f"{spec.name} needs classes and channels of at least 1, not {classes}, {channels}."
        )
    root = root_of(classes, dtype)
    spec = replace(
        spec,
        input_shape=(*window, channels),
        embedding=(*window, spec.embedding[-1]),
        logits_shape=window,
        classes=classes,
    )
    return encoder_decoder_model(root, spec)


def patch_network_spec(name: str, side: int, features: int, **others: Any) -> ModelSpec:
    """What all of them have in common: cubes of ``side`` voxels, intensities in 0..1, no prompts, no weights."""
    return ModelSpec(
        name,
        (side, side, side, 1),
        (side, side, side, features),
        (side, side, side),
        resize="none",
        normalise="unit",
        prompts=("none",),
        task="semantic",
        notes="no pretrained weights: a volumetric network that is trained from scratch on patches",
        **others,
    )
