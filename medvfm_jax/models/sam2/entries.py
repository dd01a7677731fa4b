"""SAM 2.1's image predictor by name, and MedSAM2, a retrained tiny model at 512 pixels."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.input_rule import sized
from medvfm_jax.models.sam.root import as_model
from medvfm_jax.models.sam2.encoder import PACKED, Sam2Encoder
from medvfm_jax.models.sam2.hf_port_table import HF_SAM2
from medvfm_jax.models.sam2.hiera import HieraConfig
from medvfm_jax.models.sam2.port_table import SAM2
from medvfm_jax.models.sam2.root import Sam2
from medvfm_jax.types import ModelSpec, PromptKind

# The image is stretched to a square, and its channels are standardised as for ImageNet.
_RULE: Mapping[str, Any] = {
    "resize": "stretch", "normalise": "mean_std_255",
    "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
}  # fmt: skip

_HIDDEN = 2048  # of the MLPs of decoder and memory attention
_TINY = HieraConfig()


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


def _entry(
    name: str,
    config: HieraConfig,
    size: int = 1024,
    *,
    prompts: tuple[PromptKind, ...] = ("box", "point", "mask"),
    licence: str = "Apache-2.0",
    hidden: int = _HIDDEN,
    start: Any = "published",
    source: str = "https://arxiv.org/abs/2408.00714",
) -> ModelEntry:
    grid, features = 2 * size // config.reduction, PACKED * config.out_features
    spec = ModelSpec(
        name,
        size,
        (grid, grid, features),
        4 * grid,
        prompts=prompts,
        licence=licence,
        head_dim=config.dim // config.heads,
        multimask_fallback=True,
        **_RULE,
    )
    return ModelEntry(
        "sam2",
        spec,
        partial(_build, spec, config, hidden),
        ("image_size", "remat", "memory", "dtype"),
        (SAM2, HF_SAM2),
        start=start,
        source=source,
        heads=config.heads,
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "sam2-tiny": _entry("sam2-tiny", _TINY),
    "sam2-small": _entry("sam2-small", HieraConfig(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13))),
    "sam2-base-plus": _entry(
        "sam2-base-plus", HieraConfig(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14)
    ),
    "sam2-large": _entry("sam2-large", HieraConfig(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8))),
    "medsam2": _entry(
        "medsam2",
        _TINY,
        512,
        prompts=("box",),
        licence="CC-BY-SA-4.0",
        source="https://arxiv.org/abs/2504.03600",
    ),
    "sam2-tiny-test": _entry(
        "sam2-tiny-test",
        HieraConfig(8, 1, (1, 1, 3, 1), (4,), (4, 2, 6, 3), background=3, mlp_ratio=2, out_features=32),
        64,
        hidden=64,
        start="fixed",
    ),
}
