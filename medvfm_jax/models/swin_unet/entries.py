"""Swin-Unet by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.semantic import check_from_scratch, spec_from_scratch
from medvfm_jax.models.swin.modules import SwinConfig
from medvfm_jax.models.swin_unet.modules import SwinUnet, SwinUnetConfig
from medvfm_jax.types import ModelSpec

VARIANTS: Mapping[str, SwinUnetConfig] = {
    "swin-unet": SwinUnetConfig(classes=2),
    "swin-unet-tiny-test": SwinUnetConfig(
        2, SwinConfig(dim=8, depths=(2, 2), heads=(1, 2), window=4), up=(2,)
    ),
}


def build_swin_unet(
    name: str, *, classes: int = 2, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    """A Swin-Unet: ``apply(params, image (S, S, 3)) -> Prediction(logits (classes, S, S))``.

    S is ``image_size``, 224 unless given, and the parameters do not depend on it; classes counts the background.
    Prompts are ignored.  Raises BadModelOption.
    """
    config = VARIANTS[name]
    config = replace(config, classes=classes, swin=replace(config.swin, dtype=dtype))
    size = _size(config) if image_size is None else image_size
    check_from_scratch(name, classes, size, config.swin.reduction)
    return encoder_decoder_model(SwinUnet(config), _spec(name, config, size))


def _size(config: SwinUnetConfig) -> int:
    return config.swin.reduction * config.swin.window


def _spec(name: str, config: SwinUnetConfig, size: int) -> ModelSpec:
    swin = config.swin
    features, head_dim = (size, size, swin.dim), swin.dim // swin.heads[0]
    return spec_from_scratch(name, size, features, config.classes, head_dim, "a U-Net of Swin blocks")


ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "swin_unet",
        _spec(name, config, _size(config)),
        partial(build_swin_unet, name),
        ("classes", "image_size", "dtype"),
        start="random",
        source="https://arxiv.org/abs/2105.05537",
        differences="From random weights, where the paper starts from ImageNet's; no stochastic depth.",
    )
    for name, config in VARIANTS.items()
}
