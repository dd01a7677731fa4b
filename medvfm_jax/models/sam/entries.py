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
from medvfm_jax.models.sam.efficient_encoder import EfficientSamConfig, EfficientSamEncoder
from medvfm_jax.models.sam.efficient_port_table import EFFICIENT_SAM, VIT_SAM
from medvfm_jax.models.sam.efficient_vit import EfficientViT, EfficientViTConfig
from medvfm_jax.models.sam.efficient_vit_port_table import EFFICIENT_VIT_SAM
from medvfm_jax.models.sam.encoder import SamEncoder, SamEncoderConfig
from medvfm_jax.models.sam.hf_port_table import HF_SAM
from medvfm_jax.models.sam.input_rule import sized
from medvfm_jax.models.sam.port_table import SAM
from medvfm_jax.models.sam.rep_vit import RepViT, RepViTConfig
from medvfm_jax.models.sam.rep_vit_port_table import REP_VIT_SAM
from medvfm_jax.models.sam.root import Sam, as_model
from medvfm_jax.models.sam.tiny_vit import TinyViT, TinyViTConfig
from medvfm_jax.models.sam.tiny_vit_port_table import TINY_VIT_SAM
from medvfm_jax.types import ModelSpec

_SAM_RULE: Mapping[str, Any] = {
    "normalise": "mean_std_255", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375),
    "prompts": ("box", "point", "mask"),
}  # fmt: skip
_EFFICIENT_RULE: Mapping[str, Any] = {
    "normalise": "mean_std_unit", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "resize": "stretch", "prompts": ("box", "point"),
}  # fmt: skip
_BOX_RULE: Mapping[str, Any] = {"normalise": "minmax", "prompts": ("box",)}
_HIDDEN, _HIDDEN_OF_TESTS = 2048, 64  # of the decoder's MLP


def _spec(
    name: str, size: int, grid: int, features: int, licence: str = "Apache-2.0", **facts: Any
) -> ModelSpec:
    return ModelSpec(name, size, (grid, grid, features), 4 * grid, licence=licence, **facts)


def _model(encoder: nn.Module, spec: ModelSpec, dtype: Any, efficient: bool = False) -> Model:
    hidden = _HIDDEN_OF_TESTS if spec.name.endswith("-test") else _HIDDEN
    return as_model(Sam(encoder, spec, decoder_hidden=hidden, dtype=dtype, efficient=efficient))


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


def _build_rep_vit(
    spec: ModelSpec, config: RepViTConfig, *, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    size = image_size or spec.input_size
    sized(spec, size, 2 * config.reduction)  # the last stage has half the embedding's grid
    return _model(RepViT(replace(config, dtype=dtype)), sized(spec, size, config.reduction), dtype)


def _build_efficient_vit(
    spec: ModelSpec, config: EfficientViTConfig, *, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    size = image_size or spec.input_size
    sized(spec, size, 4 * config.reduction)  # two stages have coarser grids than the embedding
    return _model(EfficientViT(replace(config, dtype=dtype)), sized(spec, size, config.reduction), dtype)


def _build_efficient(
    spec: ModelSpec, config: EfficientSamConfig, *, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    spec = sized(spec, image_size or spec.input_size, config.reduction)
    return _model(EfficientSamEncoder(replace(config, dtype=dtype)), spec, dtype, efficient=True)


def _build_plain(
    spec: ModelSpec, config: EfficientSamConfig, *, image_size: int | None = None, dtype: Any = jnp.float32
) -> Model:
    size = image_size or spec.input_size
    grid = size // config.reduction
    if grid**2 % config.dilation:
        raise BadModelOption(
            f"{spec.name} has tokens in {config.dilation} equal groups, and {size} px make {grid} x {grid} tokens."
        )
    spec = sized(spec, size, config.reduction)
    return _model(EfficientSamEncoder(replace(config, dtype=dtype)), spec, dtype)


def _sam(spec: ModelSpec, config: SamEncoderConfig, start: Any = "published", source: str = "") -> ModelEntry:
    build: Callable[..., Model] = partial(_build_vit, spec, config)
    options = ("image_size", "scan_blocks", "remat", "dtype")
    return ModelEntry(
        "sam",
        spec,
        build,
        options,
        (SAM, HF_SAM),
        start=start,
        source=source,
        heads=config.heads,
        group=config.group,
    )


def _tiny(spec: ModelSpec, config: TinyViTConfig, start: Any = "published", source: str = "") -> ModelEntry:
    build: Callable[..., Model] = partial(_build_tiny_vit, spec, config)
    return ModelEntry(
        "tiny_vit_sam", spec, build, ("image_size", "dtype"), (TINY_VIT_SAM,), start=start, source=source
    )


def _edge(spec: ModelSpec, config: RepViTConfig, start: Any = "published", source: str = "") -> ModelEntry:
    build: Callable[..., Model] = partial(_build_rep_vit, spec, config)
    return ModelEntry(
        "rep_vit_sam", spec, build, ("image_size", "dtype"), (REP_VIT_SAM,), start=start, source=source
    )


def _efficient_vit(spec: ModelSpec, config: EfficientViTConfig, start: Any = "published") -> ModelEntry:
    build: Callable[..., Model] = partial(_build_efficient_vit, spec, config)
    return ModelEntry(
        "efficient_vit_sam",
        spec,
        build,
        ("image_size", "dtype"),
        (EFFICIENT_VIT_SAM,),
        start=start,
        source="https://arxiv.org/abs/2402.05008",
        differences=_HALVED if config.shrink > 1 else "",
    )


def _efficient(
    spec: ModelSpec, config: EfficientSamConfig, start: Any = "published", source: str = ""
) -> ModelEntry:
    build: Callable[..., Model] = partial(_build_efficient, spec, config)
    options = ("image_size", "dtype")
    return ModelEntry(
        "efficient_sam",
        spec,
        build,
        options,
        (EFFICIENT_SAM,),
        start=start,
        source=source,
        heads=config.heads,
    )


def _plain(spec: ModelSpec, config: EfficientSamConfig, source: str, differences: str) -> ModelEntry:
    build: Callable[..., Model] = partial(_build_plain, spec, config)
    return ModelEntry(
        "vit_sam",
        spec,
        build,
        ("image_size", "dtype"),
        (VIT_SAM,),
        start="random",
        source=source,
        heads=config.heads,
        differences=differences,
    )


_HALVED = (
    "The picture comes in SAM's frame of 1024 px and is averaged to 512, where the release resizes it once."
)
_XL: Mapping[str, Any] = {
    "widths": (32, 64, 128, 256, 512, 1024),
    "kinds": ("res", "fmb", "fmb", "fmb", "att3", "att3"),
    "expand": (1, 4, 4, 4, 4, 6),
    "neck_expand": 4,
    "shrink": 1,
}
_EFFICIENT_VITS = {
    "l0": EfficientViTConfig(),
    "l1": EfficientViTConfig(depths=(1, 1, 1, 6, 6), neck_depth=8),
    "l2": EfficientViTConfig(depths=(1, 2, 2, 8, 8), neck_depth=12),
    "xl0": EfficientViTConfig(depths=(0, 1, 1, 2, 3, 3), neck_depth=6, **_XL),
    "xl1": EfficientViTConfig(depths=(1, 2, 2, 4, 6, 6), neck_depth=12, **_XL),
}
_REP_VIT_23 = RepViTConfig((80, 160, 320, 640), (7, 7, 35, 2), fuse=False, joint=True)
_PLAIN = "EfficientSAM's encoder before SAM's own prompt encoder and mask decoder, in SAM's frame."
_DILATED = (
    "Interpretation: only the abstract was read. EfficientSAM's ViT-S, whose blocks attend in turn in four segments "
    "and among every fourth token."
)
_STUDENT = "LiteMedSAM with a smaller encoder, of our own choice."
_TINY_VIT = {"qkv_layout": "head_major", "head_dim": 32}

ENTRIES: Mapping[str, ModelEntry] = {
    "sam-b": _sam(
        _spec("sam-b", 1024, 64, 256, **_SAM_RULE),
        SamEncoderConfig(),
        source="https://arxiv.org/abs/2304.02643",
    ),
    "sam-l": _sam(
        _spec("sam-l", 1024, 64, 256, **_SAM_RULE),
        SamEncoderConfig(1024, 24, 16, (5, 11, 17, 23)),
        source="https://arxiv.org/abs/2304.02643",
    ),
    "sam-h": _sam(
        _spec("sam-h", 1024, 64, 256, **_SAM_RULE, head_dim=80),
        SamEncoderConfig(1280, 32, 16, (7, 15, 23, 31)),
        source="https://arxiv.org/abs/2304.02643",
    ),
    "medsam": _sam(
        _spec("medsam", 1024, 64, 256, **_BOX_RULE, resize="stretch"),
        SamEncoderConfig(),
        source="https://arxiv.org/abs/2304.12306",
    ),
    "sam-tiny-test": _sam(
        _spec("sam-tiny-test", 64, 4, 32, **_SAM_RULE, head_dim=8),
        SamEncoderConfig(16, 4, 2, (1, 3), window=3, pretrain_grid=4, mlp_ratio=2, out_features=32),
        "fixed",
    ),
    "lite-medsam": _tiny(
        _spec("lite-medsam", 256, 64, 256, **_BOX_RULE, **_TINY_VIT),
        TinyViTConfig(),
        source="https://arxiv.org/abs/2304.12306",
    ),
    # Students: their weights come from `medvfm distill`.
    "lite-medsam-s": _tiny(
        _spec("lite-medsam-s", 256, 64, 256, **_BOX_RULE, **_TINY_VIT),
        TinyViTConfig((32, 64, 128, 192), (1, 1, 3, 1), (1, 2, 4, 6)),
        "random",
        source="https://arxiv.org/abs/2304.12306",
    )._replace(differences=_STUDENT),
    "lite-medsam-xs": _tiny(
        _spec("lite-medsam-xs", 256, 64, 256, **_BOX_RULE, **_TINY_VIT),
        TinyViTConfig((32, 64, 128, 192), (1, 1, 3, 1), (1, 2, 4, 6), merge_strides=(1, 1, 1), stem_stride=2),
        "random",
        source="https://arxiv.org/abs/2304.12306",
    )._replace(differences=_STUDENT),
    "student-vit-ti": _plain(
        _spec("student-vit-ti", 1024, 64, 256, **_SAM_RULE),
        EfficientSamConfig(),
        "https://arxiv.org/abs/2312.00863",
        _PLAIN,
    ),
    "student-vit-s": _plain(
        _spec("student-vit-s", 1024, 64, 256, **_SAM_RULE),
        EfficientSamConfig(384, heads=6),
        "https://arxiv.org/abs/2312.00863",
        _PLAIN,
    ),
    "student-dilated-vit-s": _plain(
        _spec("student-dilated-vit-s", 1024, 64, 256, **_SAM_RULE),
        EfficientSamConfig(384, heads=6, dilation=4),
        "https://arxiv.org/abs/2403.09195",
        _DILATED,
    ),
    "mobile-sam": _tiny(
        _spec("mobile-sam", 1024, 64, 256, **_SAM_RULE, **_TINY_VIT),
        TinyViTConfig(stem_stride=2),
        source="https://arxiv.org/abs/2306.14289",
    ),
    "tiny-sam": _tiny(
        _spec("tiny-sam", 1024, 64, 256, **_SAM_RULE, **_TINY_VIT),
        TinyViTConfig(stem_stride=2),
        source="https://arxiv.org/abs/2312.13789",
    ),
    "sam-med2d": _sam(
        _spec("sam-med2d", 256, 16, 256, **_SAM_RULE, resize="stretch"),
        SamEncoderConfig(pretrain_grid=16, block_adapters=True),
        source="https://arxiv.org/abs/2308.16184",
    ),
    "efficient-sam-ti": _efficient(
        _spec("efficient-sam-ti", 1024, 64, 256, **_EFFICIENT_RULE),
        EfficientSamConfig(),
        source="https://arxiv.org/abs/2312.00863",
    ),
    "efficient-sam-s": _efficient(
        _spec("efficient-sam-s", 1024, 64, 256, **_EFFICIENT_RULE),
        EfficientSamConfig(384, heads=6),
        source="https://arxiv.org/abs/2312.00863",
    ),
    "edge-sam": _edge(
        _spec("edge-sam", 1024, 64, 256, "S-Lab-1.0 (non-commercial)", **_SAM_RULE),
        RepViTConfig(),
        source="https://arxiv.org/abs/2312.06660",
    ),
    "rep-vit-sam": _edge(
        _spec("rep-vit-sam", 1024, 64, 256, **_SAM_RULE),
        _REP_VIT_23,
        source="https://arxiv.org/abs/2312.05760",
    ),
    **{
        f"efficient-vit-sam-{size}": _efficient_vit(
            _spec(f"efficient-vit-sam-{size}", 1024, 64, 256, **_SAM_RULE), config
        )
        for size, config in _EFFICIENT_VITS.items()
    },
    # The same encoders without their releases' weights, for SAM's descendants as teachers.
    **{
        f"student-efficient-vit-{size}": _efficient_vit(
            _spec(f"student-efficient-vit-{size}", 1024, 64, 256, **_SAM_RULE), config, "random"
        )
        for size, config in _EFFICIENT_VITS.items()
    },
    "student-rep-vit-m1": _edge(
        _spec("student-rep-vit-m1", 1024, 64, 256, **_SAM_RULE),
        RepViTConfig(),
        "random",
        "https://arxiv.org/abs/2307.09283",
    )._replace(differences="With the fusion of two stages that EdgeSAM adds."),
    "student-rep-vit-m2.3": _edge(
        _spec("student-rep-vit-m2.3", 1024, 64, 256, **_SAM_RULE),
        _REP_VIT_23,
        "random",
        "https://arxiv.org/abs/2312.05760",
    ),
    "student-tiny-vit": _tiny(
        _spec("student-tiny-vit", 1024, 64, 256, **_SAM_RULE, **_TINY_VIT),
        TinyViTConfig(stem_stride=2),
        "random",
        "https://arxiv.org/abs/2306.14289",
    ),
    "med2d-tiny-test": _sam(
        _spec("med2d-tiny-test", 64, 4, 32, **_SAM_RULE, head_dim=8),
        SamEncoderConfig(
            16, 4, 2, (1, 3), window=3, pretrain_grid=4, mlp_ratio=2, out_features=32, block_adapters=True
        ),
        "fixed",
    ),
    "efficient-tiny-test": _efficient(
        _spec("efficient-tiny-test", 64, 4, 32, **_EFFICIENT_RULE, head_dim=8),
        EfficientSamConfig(16, 2, 2, pretrain_grid=2, mlp_ratio=2, out_features=32),
        "fixed",
    ),
    "edge-tiny-test": _edge(
        _spec("edge-tiny-test", 64, 4, 32, **_SAM_RULE),
        RepViTConfig((8, 8, 16, 16), (1, 1, 3, 2), out_features=32),
        "fixed",
    ),
    "rep-tiny-test": _edge(
        _spec("rep-tiny-test", 64, 4, 32, **_SAM_RULE),
        RepViTConfig((8, 8, 16, 16), (1, 1, 3, 2), out_features=32, fuse=False, joint=True),
        "fixed",
    ),
    "efficient-vit-tiny-test": _efficient_vit(
        _spec("efficient-vit-tiny-test", 64, 4, 32, **_SAM_RULE),
        EfficientViTConfig(
            (8, 8, 8, 16, 16),
            (1, 1, 1, 1, 1),
            expand=(1, 1, 1, 1, 2),
            neck_depth=1,
            head_dim=8,
            out_features=32,
        ),
        "fixed",
    ),
    "lite-tiny-test": _tiny(
        _spec("lite-tiny-test", 32, 8, 32, **_BOX_RULE, qkv_layout="head_major", head_dim=8),
        TinyViTConfig(
            (8, 16, 16, 32), (1, 1, 1, 1), (1, 2, 2, 4), (3, 3, 5, 3), mlp_ratio=2, out_features=32
        ),
        "fixed",
    ),
    "vit-student-tiny-test": _plain(
        _spec("vit-student-tiny-test", 32, 8, 32, **_BOX_RULE, head_dim=8),
        EfficientSamConfig(16, 2, 2, patch_size=4, pretrain_grid=4, mlp_ratio=2, out_features=32),
        "",
        "",
    ),
    "dilated-student-tiny-test": _plain(
        _spec("dilated-student-tiny-test", 32, 8, 32, **_BOX_RULE, head_dim=8),
        EfficientSamConfig(16, 4, 2, patch_size=4, pretrain_grid=4, mlp_ratio=2, out_features=32, dilation=4),
        "",
        "",
    ),
    "student-tiny-test": _tiny(
        _spec("student-tiny-test", 32, 8, 32, **_BOX_RULE, qkv_layout="head_major", head_dim=8),
        TinyViTConfig((8, 8, 16, 16), (1, 1, 1, 1), (1, 1, 2, 2), (3, 3, 5, 3), mlp_ratio=2, out_features=32),
        "random",
    ),
}
