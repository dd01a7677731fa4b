"""HiFormer-S, -B and -L by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.hiformer.modules import REDUCTION, HiFormer, HiFormerConfig
from medvfm_jax.models.hiformer.resnet import ResNetConfig
from medvfm_jax.models.model import Model
from medvfm_jax.models.semantic import check_from_scratch, spec_from_scratch
from medvfm_jax.models.swin.modules import SwinConfig
from medvfm_jax.types import ModelSpec

_RESNET_34, _RESNET_50 = ResNetConfig(), ResNetConfig(bottleneck=True)
_SWIN = SwinConfig(depths=(2, 2, 6), heads=(3, 6, 12))

VARIANTS: Mapping[str, HiFormerConfig] = {
    "hiformer-s": HiFormerConfig(2, _RESNET_34, _SWIN, (1, 1), (3, 3), (1, 1)),
    "hiformer-b": HiFormerConfig(2, _RESNET_50, _SWIN, (1, 2), (6, 12), (2, 2)),
    "hiformer-l": HiFormerConfig(2, _RESNET_34, _SWIN, (1, 4), (6, 6), (4, 4)),
    "hiformer-tiny-test": HiFormerConfig(
        2,
        ResNetConfig((1, 1, 1), 4, bottleneck=True),
        SwinConfig(8, (2, 2, 2), (1, 2, 2), window=4),
        (1, 1),
        (1, 2),
        (1, 1),
        decoded=8,
        groups=2,
        features=4,
    ),
}
_SIZES = {"hiformer-tiny-test": 32}


def build_hiformer(
    name: str, *, classes: int = 2, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    """A HiFormer: ``apply(params, image (S, S, 3)) -> Prediction(logits (classes, S, S))``.

    S is ``image_size``, 224 unless given; the position of every token is learned, so the parameters depend on it.
    classes counts the background.  Prompts are ignored.  Raises BadModelOption.
    """
    config = VARIANTS[name]
    config = replace(
        config,
        classes=classes,
        resnet=replace(config.resnet, dtype=dtype),
        swin=replace(config.swin, dtype=dtype),
    )
    size = _SIZES.get(name, 224) if image_size is None else image_size
    # Two tokens a side at least: at one, a norm over one image would erase everything.
    check_from_scratch(name, classes, size, 2 * REDUCTION)
    return encoder_decoder_model(HiFormer(config), _spec(name, config, size))


def _spec(name: str, config: HiFormerConfig, size: int) -> ModelSpec:
    features, head_dim = (size, size, config.features), config.swin.dim // config.swin.heads[0]
    return spec_from_scratch(
        name, size, features, config.classes, head_dim, "a ResNet and a Swin Transformer side by side"
    )


# XLA's CPU backend does 3x3 convolutions many times slower inside a loop, so batches stay whole.
ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "hiformer",
        _spec(name, config, _SIZES.get(name, 224)),
        partial(build_hiformer, name),
        ("classes", "image_size", "dtype"),
        start="random",
        whole_batches=True,
        source="https://arxiv.org/abs/2207.08518",
        differences="From random weights, where the paper starts from ImageNet's; norms over one image in the ResNet. "
        "The encoders behind the exchange of class tokens take part, as in the paper; in the release they do not.",
    )
    for name, config in VARIANTS.items()
}
