"""TransUNet by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.semantic import check_from_scratch, spec_from_scratch
from medvfm_jax.models.transunet.modules import REDUCTION, TransUnet, TransUnetConfig
from medvfm_jax.models.transunet.resnet import HybridConfig
from medvfm_jax.models.vit.modules import ViTConfig
from medvfm_jax.types import ModelSpec

VARIANTS: Mapping[str, TransUnetConfig] = {
    "transunet": TransUnetConfig(2),
    "transunet-tiny-test": TransUnetConfig(
        2, HybridConfig((1, 1, 1), 4, 2), ViTConfig(16, 2, 2), middle=16, up=(8, 8, 4, 4)
    ),
}
_SIZES = {"transunet": 224, "transunet-tiny-test": 32}


def build_transunet(
    name: str, *, classes: int = 2, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    """A TransUNet: ``apply(params, image (S, S, 3)) -> Prediction(logits (classes, S, S))``.

    S is ``image_size``, 224 unless given; the position of every token is learned, so the parameters depend on it.
    classes counts the background.  Prompts are ignored.  Raises BadModelOption.
    """
    config = VARIANTS[name]
    config = replace(
        config,
        classes=classes,
        resnet=replace(config.resnet, dtype=dtype),
        vit=replace(config.vit, dtype=dtype),
    )
    size = _SIZES[name] if image_size is None else image_size
    # Two tokens a side at least: at one, a norm over one image would erase everything.
    check_from_scratch(name, classes, size, 2 * REDUCTION)
    return encoder_decoder_model(TransUnet(config), _spec(name, config, size))


def _spec(name: str, config: TransUnetConfig, size: int) -> ModelSpec:
    features, head_dim = (size, size, config.up[-1]), config.vit.dim // config.vit.heads
    return spec_from_scratch(name, size, features, config.classes, head_dim, "a ResNet with a ViT behind it")


# XLA's CPU backend does 3x3 convolutions many times slower inside a loop, so batches stay whole.
ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "transunet",
        _spec(name, config, _SIZES[name]),
        partial(build_transunet, name),
        ("classes", "image_size", "dtype"),
        start="random",
        heads=config.vit.heads,
        whole_batches=True,
        source="https://arxiv.org/abs/2102.04306",
        differences="From random weights, where the paper starts from ImageNet's; norms over one image in the decoder; "
        "no dropout.",
    )
    for name, config in VARIANTS.items()
}
