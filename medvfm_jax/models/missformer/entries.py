"""MISSFormer by name, and as the functions of a ``Model``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.encoder_decoder import encoder_decoder_model
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.missformer.modules import MissFormer, MissFormerConfig
from medvfm_jax.models.model import Model
from medvfm_jax.models.semantic import check_from_scratch, spec_from_scratch
from medvfm_jax.types import ModelSpec

VARIANTS: Mapping[str, MissFormerConfig] = {
    "missformer": MissFormerConfig(2),
    "missformer-tiny-test": MissFormerConfig(2, (4, 8), (1, 2), blocks=1, bridge=1, ratio=2),
}
_SIZES = {"missformer": 224, "missformer-tiny-test": 32}


def build_missformer(
    name: str, *, classes: int = 2, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    """A MISSFormer: ``apply(params, image (S, S, 3)) -> Prediction(logits (classes, S, S))``.

    S is ``image_size``, 224 unless given, and the parameters do not depend on it; classes counts the background.
    Prompts are ignored.  Raises BadModelOption.
    """
    config = replace(VARIANTS[name], classes=classes, dtype=dtype)
    size = _SIZES[name] if image_size is None else image_size
    check_from_scratch(name, classes, size, config.reduction)
    return encoder_decoder_model(MissFormer(config), _spec(name, config, size))


def _spec(name: str, config: MissFormerConfig, size: int) -> ModelSpec:
    features, head_dim = (size, size, config.widths[0]), config.widths[0] // config.heads[0]
    return spec_from_scratch(
        name,
        size,
        features,
        config.classes,
        head_dim,
        "a U-Net of transformer blocks with a bridge over its scales",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "missformer",
        _spec(name, config, _SIZES[name]),
        partial(build_missformer, name),
        ("classes", "image_size", "dtype"),
        start="random",
        source="https://arxiv.org/abs/2109.07162",
        differences="Interpretation: sizes that the paper leaves open are chosen; 41.81 million parameters, where "
        "42.46 are published; no stochastic depth.",
    )
    for name, config in VARIANTS.items()
}
