"""SAM, MedSAM and their small descendants by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.encoder import SamEncoder, SamEncoderConfig
from medvfm_jax.models.sam.hf_port_table import HF_SAM
from medvfm_jax.models.sam.port_table import SAM
from medvfm_jax.models.sam.root import Sam, as_model
from medvfm_jax.models.sam.tiny_vit import TinyViT, TinyViTConfig
from medvfm_jax.models.sam.tiny_vit_port_table import TINY_VIT_SAM
from medvfm_jax.types import ModelSpec

_SAM_RULE: Mapping[str, Any] = {
    "normalise": "mean_std_255", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
    "prompts": ("box", "point", "mask"),
}  # fmt: skip
_BOX_RULE: Mapping[str, Any] = {"normalise": "minmax", "prompts": ("box",)}
_HIDDEN, _HIDDEN_OF_TESTS = 2048, 64  # of the decoder's MLP


def _spec(name: str, size: int, grid: int, features: int, **facts: Any) -> ModelSpec:
    return ModelSpec(name, size, (grid, grid, features), 4 * grid, licence="Apache-2.0", **facts)


def sized(spec: ModelSpec, size: int, reduction: int, cells: int = 1) -> ModelSpec:
    """The spec at another image size, with so many cells of the embedding per ``reduction`` pixels of a side.

    Raises BadModelOption.
    """
    if size < reduction or size % reduction:
        raise BadModelOption(
            f"{spec.name} needs an image_size that is a positive multiple of {reduction}, not {size}."
        )
    grid = cells * size // reduction
    return replace(spec, input_shape=size, embedding=(grid, grid, spec.embedding[-1]), logits_shape=4 * grid)


def _model(encoder: nn.Module, spec: ModelSpec, dtype: Any) -> Model:
    hidden = _HIDDEN_OF_TESTS if spec.name.endswith("-test") else _HIDDEN
    return as_model(Sam(encoder, spec, decoder_hidden=hidden, dtype=dtype))


def _build_vit(
    spec: ModelSpec,
    config: SamEncoderConfig,
    *,
    image_size: int | None = None,
    scan_blocks: bool = False,
    remat: bool | str = False,
    dtype: Any = jnp.float32,
) -> Model:
    spec = sized(spec, image_size or spec.input_size, config.patch_size)
    return _model(SamEncoder(replace(config, scan_blocks=scan_blocks, remat=remat, dtype=dtype)), spec, dtype)


def _build_tiny_vit(
    spec: ModelSpec, config: TinyViTConfig, *, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    spec = sized(spec, image_size or spec.input_size, config.reduction)
    return _model(TinyViT(replace(config, dtype=dtype)), spec, dtype)


def _sam(spec: ModelSpec, config: SamEncoderConfig, start: Any = "published") -> ModelEntry:
    build: Callable[..., Model] = partial(_build_vit, spec, config)
    options = ("image_size", "scan_blocks", "remat", "dtype")
    return ModelEntry(
        "sam", spec, build, options, (SAM, HF_SAM), start=start, heads=config.heads, group=config.group
    )


def _tiny(spec: ModelSpec, config: TinyViTConfig, start: Any = "published") -> ModelEntry:
    build: Callable[..., Model] = partial(_build_tiny_vit, spec, config)
    return ModelEntry("tiny_vit_sam", spec, build, ("image_size", "dtype"), (TINY_VIT_SAM,), start=start)


_TINY_VIT = {"qkv_layout": "head_major", "head_dim": 32}

ENTRIES: Mapping[str, ModelEntry] = {
    "sam-b": _sam(_spec("sam-b", 1024, 64, 256, **_SAM_RULE), SamEncoderConfig()),
    "sam-l": _sam(
        _spec("sam-l", 1024, 64, 256, **_SAM_RULE), SamEncoderConfig(1024, 24, 16, (5, 11, 17, 23))
    ),
    "sam-h": _sam(
        _spec("sam-h", 1024, 64, 256, **_SAM_RULE, head_dim=80),
        SamEncoderConfig(1280, 32, 16, (7, 15, 23, 31)),
    ),
    "medsam": _sam(_spec("medsam", 1024, 64, 256, **_BOX_RULE, resize="stretch"), SamEncoderConfig()),
    "sam-tiny-test": _sam(
        _spec("sam-tiny-test", 64, 4, 32, **_SAM_RULE, head_dim=8),
        SamEncoderConfig(16, 4, 2, (1, 3), window=3, pretrain_grid=4, mlp_ratio=2, out_features=32),
        "fixed",
    ),
    "lite-medsam": _tiny(_spec("lite-medsam", 256, 64, 256, **_BOX_RULE, **_TINY_VIT), TinyViTConfig()),
    "mobile-sam": _tiny(
        _spec("mobile-sam", 1024, 64, 256, **_SAM_RULE, **_TINY_VIT), TinyViTConfig(stem_stride=2)
    ),
    "tiny-sam": _tiny(
        _spec("tiny-sam", 1024, 64, 256, **_SAM_RULE, **_TINY_VIT), TinyViTConfig(stem_stride=2)
    ),
    "lite-tiny-test": _tiny(
        _spec("lite-tiny-test", 32, 8, 32, **_BOX_RULE, qkv_layout="head_major", head_dim=8),
        TinyViTConfig(
            (8, 16, 16, 32), (1, 1, 1, 1), (1, 2, 2, 4), (3, 3, 5, 3), mlp_ratio=2, out_features=32
        ),
        "fixed",
    ),
}
