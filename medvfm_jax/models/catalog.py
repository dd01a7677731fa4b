"""Every model by name: ``build("lite-medsam")`` gives a ``Model`` without weights."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models import scan
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam import Sam, as_model
from medvfm_jax.models.sam_encoder import SamEncoder, SamEncoderConfig
from medvfm_jax.models.tiny_vit import TinyViT, TinyViTConfig
from medvfm_jax.models.unets import build_unet
from medvfm_jax.models.vit import VARIANTS as VIT_VARIANTS
from medvfm_jax.models.vit import build_vit
from medvfm_jax.types import MedvfmError, ModelSpec, Params

IMAGENET_255 = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


COMPUTE_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


class UnknownModel(MedvfmError, ValueError):
    """The name is not in the catalogue."""


class BadModelOption(MedvfmError, ValueError):
    """An option that the model does not have, or a value that does not fit."""


# What SAM's encoders keep of a block for the backward pass -> their option ``remat``; least memory first.
KEEP: Mapping[str, bool | str] = {"nothing": True, "products": "between", "everything": False}

SAM_ENCODERS: Mapping[str, SamEncoderConfig] = {
    "sam-b": SamEncoderConfig(),
    "sam-l": SamEncoderConfig(1024, 24, 16, (5, 11, 17, 23)),
    "sam-h": SamEncoderConfig(1280, 32, 16, (7, 15, 23, 31)),
    "medsam": SamEncoderConfig(),
    "sam-tiny-test": SamEncoderConfig(
        16, 4, 2, (1, 3), window=3, pretrain_grid=4, mlp_ratio=2, out_features=32
    ),
}
TINY_VITS: Mapping[str, TinyViTConfig] = {
    "lite-medsam": TinyViTConfig(),
    "mobile-sam": TinyViTConfig(stem_stride=2),
    "tiny-sam": TinyViTConfig(stem_stride=2),
    "lite-tiny-test": TinyViTConfig(
        (8, 16, 16, 32), (1, 1, 1, 1), (1, 2, 2, 4), (3, 3, 5, 3), mlp_ratio=2, out_features=32
    ),
}
SPECS: Mapping[str, ModelSpec] = {
    "sam-b": ModelSpec("sam-b", 1024, (64, 64, 256), 256),
    "sam-l": ModelSpec("sam-l", 1024, (64, 64, 256), 256),
    "sam-h": ModelSpec("sam-h", 1024, (64, 64, 256), 256, head_dim=80),
    "medsam": ModelSpec("medsam", 1024, (64, 64, 256), 256, resize="stretch", licence="Apache-2.0"),
    "sam-tiny-test": ModelSpec("sam-tiny-test", 64, (4, 4, 32), 16, head_dim=8),
    "lite-medsam": ModelSpec("lite-medsam", 256, (64, 64, 256), 256),
    "mobile-sam": ModelSpec("mobile-sam", 1024, (64, 64, 256), 256),
    "tiny-sam": ModelSpec("tiny-sam", 1024, (64, 64, 256), 256),
    "lite-tiny-test": ModelSpec("lite-tiny-test", 32, (8, 8, 32), 32, head_dim=8),
}
_TRAINED_FOR_BOXES = {"medsam", "lite-medsam", "lite-tiny-test"}


def names() -> tuple[str, ...]:
    """Every name ``build`` knows; those ending in "-test" are tiny and have no published weights."""
    return (*SAM_ENCODERS, *TINY_VITS, *VIT_VARIANTS, "unet")


def build(name: str, **options: Any) -> Model:
    """The model without weights.

    options: ``dtype`` (compute dtype, float32 or bfloat16) and ``image_size`` for all; ``scan_blocks`` for SAM
    and ViT encoders (blocks stacked, see ``models.scan``); ``remat`` for SAM encoders (True, or
    "between": only what lies between matrix products is computed again); ``classes``, ``base`` and
    ``depth`` for the U-Net.  Raises UnknownModel, BadModelOption.
    """
    if jnp.dtype(options.get("dtype", jnp.float32)) not in COMPUTE_DTYPES:
        raise BadModelOption(f"Model '{name}' computes in float32 or bfloat16, not {options['dtype']}.")
    try:
        return _builder(name)(**options)
    except TypeError as error:
        raise BadModelOption(f"Model '{name}' does not take these options: {error}.") from None


def _builder(name: str) -> Callable[..., Model]:
    if name in SAM_ENCODERS:
        return lambda **options: _sam(name, **options)
    if name in TINY_VITS:
        return lambda **options: _tiny_vit_sam(name, **options)
    if name in VIT_VARIANTS:
        return lambda **options: build_vit(name, **options)
    if name == "unet":
        return build_unet
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.3)
    raise UnknownModel(f"There is no model '{name}'; did you mean {' or '.join(near or names())}?")


def _sam(
    name: str,
    *,
    image_size: int | None = None,
    scan_blocks: bool = False,
    remat: bool | str = False,
    dtype: Any = jnp.float32,
) -> Model:
    config = SAM_ENCODERS[name]
    size = image_size or SPECS[name].input_size
    if size % config.patch_size:
        raise BadModelOption(
            f"{name} needs an image_size that is a multiple of {config.patch_size}, not {size}."
        )
    config = replace(config, scan_blocks=scan_blocks, remat=remat, dtype=dtype)
    spec = _spec(name, size, size // config.patch_size, config.out_features)
    hidden = 64 if name.endswith("-test") else 2048
    return as_model(Sam(SamEncoder(config), spec, decoder_hidden=hidden, dtype=dtype))


def _tiny_vit_sam(name: str, *, image_size: int | None = None, dtype: Any = jnp.float32) -> Model:
    config = replace(TINY_VITS[name], dtype=dtype)
    size = image_size or SPECS[name].input_size
    if size % config.reduction:
        raise BadModelOption(
            f"{name} needs an image_size that is a multiple of {config.reduction}, not {size}."
        )
    spec = _spec(name, size, size // config.reduction, config.out_features)
    hidden = 64 if name.endswith("-test") else 2048
    return as_model(Sam(TinyViT(config), spec, decoder_hidden=hidden, dtype=dtype))


def _spec(name: str, size: int, grid: int, features: int) -> ModelSpec:
    boxes = name in _TRAINED_FOR_BOXES
    rule: dict[str, Any] = {"normalise": "minmax"} if boxes else {"normalise": "mean_std_255", **IMAGENET_255}
    tiny_vit = name in TINY_VITS
    return replace(
        SPECS[name],
        input_size=size,
        embedding=(grid, grid, features),
        logits_size=4 * grid,
        prompts=("box",) if boxes else ("box", "point", "mask"),
        licence="Apache-2.0",
        qkv_layout="head_major" if tiny_vit else "fused",
        head_dim=(8 if name.endswith("-test") else 32) if tiny_vit else SPECS[name].head_dim,
        **rule,
    )


def stack_blocks(params: Params, name: str) -> Params:
    """Parameters of the plain model -> those of ``build(name, scan_blocks=True)``; see ``models.scan``."""
    return scan.stack(params, SAM_ENCODERS[name].group if name in SAM_ENCODERS else 1)
