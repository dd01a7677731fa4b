"""3-D U-Nets by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.unet3d.modules import UNet3d, UNet3dConfig
from medvfm_jax.types import ModelSpec


def build_unet3d(
    spec: ModelSpec,
    config: UNet3dConfig,
    *,
    classes: int = 2,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    dtype: Any = jnp.float32,
) -> Model:
    """A 3-D U-Net: ``apply(params, patch (D, H, W, channels)) -> Prediction(logits (classes, D, H, W))``.

    window: (D, H, W); the parameters do not depend on it.  classes counts the background.  Prompts are ignored.
    Raises BadModelOption.
    """
    window, multiple = tuple(window or spec.input_shape[:3]), config.multiple
    # At one voxel per channel, instance normalisation would erase everything.
    fits = len(window) == 3 and all(type(n) is int and n >= multiple and n % multiple == 0 for n in window)
    if not fits or window == (multiple,) * 3:
        raise BadModelOption(
            f"{spec.name} needs a window of three multiples of {multiple}, one of them larger, not "
            f"{' '.join(map(str, window))}."
        )
    if classes < 1 or channels < 1:
        raise BadModelOption(
            f"{spec.name} needs classes and channels of at least 1, not {classes}, {channels}."
        )
    config = replace(config, classes=classes, dtype=dtype)
    root, spec = UNet3d(config), _sized(spec, config, (*window, channels))
    return encoder_decoder_model(root, spec)


def _sized(spec: ModelSpec, config: UNet3dConfig, shape: tuple[int, ...]) -> ModelSpec:
    return replace(
        spec,
        input_shape=shape,
        embedding=(*(n // config.fold for n in shape[:3]), config.widths[0]),
        logits_shape=shape[:3],
        classes=config.classes,
    )


_PLAN = "A fixed plan of few stages, where nnU-Net plans them for each data set."
_FOLDED = f"{_PLAN} Voxels of each 2 x 2 x 2 cube are the channels of one."


def _entry(
    name: str, config: UNet3dConfig, window: tuple[int, int, int], differences: str = _PLAN
) -> ModelEntry:
    spec = ModelSpec(
        name,
        (*window, 1),
        (*(n // config.fold for n in window), config.widths[0]),
        window,
        resize="none",
        normalise="unit",
        prompts=("none",),
        task="semantic",
        classes=config.classes,
        licence="Apache-2.0",
        notes="no pretrained weights: a volumetric network that is trained from scratch on patches",
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "unet3d",
        spec,
        partial(build_unet3d, spec, config),
        ("classes", "window", "channels", "dtype"),
        start="random",
        whole_batches=True,
        source="https://doi.org/10.1038/s41592-020-01008-z",
        differences=differences,
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "unet-3d": _entry("unet-3d", UNet3dConfig(classes=2), (64, 64, 64)),
    "unet-3d-folded": _entry(
        "unet-3d-folded",
        UNet3dConfig(2, widths=(32, 64, 128), blocks=(1, 2, 2), fold=2),
        (64, 64, 64),
        _FOLDED,
    ),
    "unet-3d-tiny-test": _entry(
        "unet-3d-tiny-test", UNet3dConfig(2, widths=(4, 6, 6), blocks=(1, 1, 1), fold=2), (16, 16, 16)
    ),
}
