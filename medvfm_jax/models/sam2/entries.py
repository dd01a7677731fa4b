"""SAM 2.1's image predictor by name."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.entries import sized
from medvfm_jax.models.sam.root import as_model
from medvfm_jax.models.sam2.encoder import PACKED, Sam2Encoder
from medvfm_jax.models.sam2.hf_port_table import HF_SAM2
from medvfm_jax.models.sam2.hiera import HieraConfig
from medvfm_jax.models.sam2.port_table import SAM2
from medvfm_jax.models.sam2.root import Sam2
from medvfm_jax.types import ModelSpec

# The image is stretched to a square, and its channels are standardised as for ImageNet.
_RULE: Mapping[str, Any] = {
    "resize": "stretch", "normalise": "mean_std_255",
    "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
    "prompts": ("box", "point", "mask"),
}  # fmt: skip

CONFIGS: Mapping[str, HieraConfig] = {
    "sam2-tiny": HieraConfig(),
    "sam2-small": HieraConfig(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "sam2-base-plus": HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "sam2-large": HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8)),
    "sam2-tiny-test": HieraConfig(
        8, 1, (1, 1, 3, 1), (4,), (4, 2, 6, 3), background=3, mlp_ratio=2, out_features=32
    ),
}


def _build(
    spec: ModelSpec,
    config: HieraConfig,
    hidden: int,
    *,
    image_size: int | None = None,
    remat: bool | str = False,
    memory: bool = False,
    dtype: Any = jnp.float32,
) -> Model:
    # Every stage has half the sides of the one before, and the embedding is that of the last but one.
    spec = sized(spec, image_size or spec.input_size, config.reduction, cells=2)
    encoder = Sam2Encoder(replace(config, remat=remat, dtype=dtype))
    return as_model(Sam2(encoder, spec, decoder_hidden=hidden, remembers=memory, dtype=dtype))


def _entry(name: str, config: HieraConfig) -> ModelEntry:
    tiny = name.endswith("-test")
    size = 64 if tiny else 1024
    grid, features = 2 * size // config.reduction, PACKED * config.out_features
    spec = ModelSpec(
        name,
        size,
        (grid, grid, features),
        4 * grid,
        licence="Apache-2.0",
        head_dim=config.dim // config.heads,
        multimask_fallback=True,
        **_RULE,
    )
    return ModelEntry(
        "sam2",
        spec,
        partial(_build, spec, config, 64 if tiny else 2048),
        ("image_size", "remat", "memory", "dtype"),
        (SAM2, HF_SAM2),
        start="fixed" if tiny else "published",
        heads=config.heads,
    )


ENTRIES: Mapping[str, ModelEntry] = {name: _entry(name, config) for name, config in CONFIGS.items()}
