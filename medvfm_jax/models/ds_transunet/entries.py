"""DS-TransUNet by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.ds_transunet.modules import DsTransUnet, DsTransUnetConfig
from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.semantic import check_from_scratch, spec_from_scratch
from medvfm_jax.models.swin.modules import SwinConfig
from medvfm_jax.types import ModelSpec

VARIANTS: Mapping[str, DsTransUnetConfig] = {
    "ds-transunet": DsTransUnetConfig(2),
    "ds-transunet-tiny-test": DsTransUnetConfig(2, SwinConfig(8, (2, 2), (1, 2), window=4), groups=2),
}
_SIZES = {"ds-transunet": 256, "ds-transunet-tiny-test": 32}


def build_ds_transunet(
    name: str, *, classes: int = 2, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    """A DS-TransUNet: ``apply(params, image (S, S, 3)) -> Prediction(logits (classes, S, S))``.

    S is ``image_size``, a multiple of 64 and 256 unless given; the parameters do not depend on it.  classes counts the
    background.  Prompts are ignored.  Raises BadModelOption.
    """
    config = VARIANTS[name]
    config = replace(config, classes=classes, swin=replace(config.swin, dtype=dtype))
    size = _SIZES[name] if image_size is None else image_size
    check_from_scratch(name, classes, size, config.reduction)
    return encoder_decoder_model(DsTransUnet(config), _spec(name, config, size))


def _spec(name: str, config: DsTransUnetConfig, size: int) -> ModelSpec:
    features, head_dim = (size, size, config.features), config.swin.dim // config.swin.heads[0]
    return spec_from_scratch(
        name, size, features, config.classes, head_dim, "two Swin Transformers of different patches"
    )


# XLA's CPU backend does 3x3 convolutions many times slower inside a loop, so batches stay whole.
ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "ds_transunet",
        _spec(name, config, _SIZES[name]),
        partial(build_ds_transunet, name),
        ("classes", "image_size", "dtype"),
        start="random",
        whole_batches=True,
        source="https://arxiv.org/abs/2106.06716",
        differences="From random weights, where the paper starts from ImageNet's; both encoders are Swin-T; sizes that "
        "the paper leaves open are chosen; no deep supervision.",
    )
    for name, config in VARIANTS.items()
}
