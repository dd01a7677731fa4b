"""CLIP as one root module of two towers, and as a ``Model`` whose ``encode`` is the image tower.

The image tower is the plain ViT of ``models.vit`` with a layer norm before its blocks, QuickGELU and patches without a
bias; its paths are those of a ViT.  Beside both towers stand ``visual_projection``, ``text_projection`` and
``logit_scale``.

Source: Radford et al. 2021 (CLIP), sections 2.3 and 2.4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.catalog import Catalog
from medvfm_jax.models.clip.text_tower import TextConfig, TextTower
from medvfm_jax.models.layers import quick_gelu
from medvfm_jax.models.model import Model
from medvfm_jax.models.vit.modules import (
    NoDecoder,
    UnknownVariant,
    ViT,
    ViTConfig,
    check_image_size,
    patch_map,
)
from medvfm_jax.types import ModelSpec, Params

# Of the images CLIP was trained with, in units of [0, 1].
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FIRST_LOGIT_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True)
class ClipConfig:
    """Static shape of both towers; embedding: width in which images and texts are compared."""

    image: ViTConfig
    text: TextConfig
    embedding: int


_FORM: Mapping[str, Any] = {"norm_eps": 1e-5, "activation": quick_gelu}
_BASE = ViTConfig(768, 12, 12, 16, 224, patch_bias=False, pre_norm=True, **_FORM)
_TEXT = TextConfig(ViTConfig(512, 12, 8, causal=True, **_FORM))
VARIANTS: Catalog[ClipConfig] = Catalog(
    "CLIP",
    {
        "clip-vit-b16": ClipConfig(_BASE, _TEXT, 512),
        "clip-vit-b32": ClipConfig(replace(_BASE, patch_size=32), _TEXT, 512),
        "clip-vit-l14": ClipConfig(
            replace(_BASE, dim=1024, depth=24, heads=16, patch_size=14),
            TextConfig(replace(_TEXT.blocks, dim=768, heads=12)),
            768,
        ),
        "clip-tiny-test": ClipConfig(
            replace(_BASE, dim=16, depth=2, heads=2, patch_size=8, pretrain_size=32),
            TextConfig(replace(_TEXT.blocks, dim=24, depth=2, heads=3), 40, 10),
            12,
        ),
    },
    UnknownVariant,
)


class Clip(nn.Module):
    """Root module: submodules image_encoder, text_encoder, visual_projection, text_projection; logit_scale."""

    config: ClipConfig

    def setup(self) -> None:
        config = self.config
        self.image_encoder = ViT(config.image)
        self.text_encoder = TextTower(config.text)
        self.visual_projection = nn.Dense(config.embedding, use_bias=False, dtype=config.image.dtype)
        self.text_projection = nn.Dense(config.embedding, use_bias=False, dtype=config.image.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(FIRST_LOGIT_SCALE), ())

    def __call__(self, image: Array) -> Array:
        """Image (S, S, 3) -> patch tokens (S/p, S/p, dim) after the final norm."""
        return self.encode_tokens(image)[1]

    def encode_tokens(self, image: Array) -> tuple[Array, Array]:
        """Image (S, S, 3) -> class token (dim,), patch tokens (S/p, S/p, dim), both after the final norm."""
        tokens = self.image_encoder(image)
        return tokens[0], patch_map(self.config.image, tokens, image.shape[0])

    @property
    def image_config(self) -> ViTConfig:
        """Shape of the image tower, a plain ViT."""
        return self.config.image

    def embed_image(self, image: Array) -> Array:
        """Image (S, S, 3) -> embedding (e,) of length 1."""
        return _unit(self.visual_projection(self.encode_tokens(image)[0]))

    def embed_text(self, tokens: Array) -> Array:
        """Token ids (n,) -> embedding (e,) of length 1."""
        return _unit(self.text_projection(self.text_encoder(tokens)))

    def compare(self, image: Array, text: Array) -> Array:
        """Embeddings (..., e) of length 1 -> logits (...): their cosine times the learned scale."""
        return jnp.exp(self.logit_scale) * (image * text).sum(-1)

    def all_parts(self, image: Array, tokens: Array) -> Array:
        """Reach every parameter: image (S, S, 3), token ids (n,) -> logit ()."""
        return self.compare(self.embed_image(image), self.embed_text(tokens))


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def build_clip(
    variant: str,
    *,
    image_size: int | None = None,
    scan_blocks: bool = False,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> Model:
    """A CLIP model whose ``encode`` gives patch tokens (S/p, S/p, dim) of the image tower, as a plain ViT does.

    ``encode_tokens(model, params, image)`` of ``models.vit`` also gives the class token; ``models.clip`` compares
    images with texts.  ``image_size`` is S, 224 unless given: positions for another grid are interpolated, parameters
    do not depend on it.  ``scan_blocks`` and ``remat`` are of the image tower, as for a plain ViT.

    Raises UnknownVariant, BadImageSize; ``decode`` raises NoDecoder.
    """
    config = VARIANTS[variant]
    half = {"dtype": dtype}
    image_tower = replace(config.image, scan_blocks=scan_blocks, remat=remat, **half)
    text_tower = replace(config.text, blocks=replace(config.text.blocks, **half))
    config = replace(config, image=image_tower, text=text_tower)
    size = check_image_size(variant, image_tower, image_size)
    root = Clip(config)

    def encode(params: Params, image: Array, **kw: Any) -> Array:
        return root.apply(params, image, **kw)

    def decode(params: Params, embedding: Array, prompts: Any = None, multimask: bool = False, **kw: Any):
        raise NoDecoder(f"{variant} gives features only: use encode, or a model with a mask decoder.")

    def apply(params: Params, image: Array, prompts: Any = None, multimask: bool = False, **kw: Any):
        return encode(params, image, **kw)

    def init(key: Array) -> Params:
        image, tokens = jnp.zeros((size, size, 3), jnp.float32), jnp.zeros(config.text.context, jnp.int32)
        return root.init(key, image, tokens, method="all_parts")

    return Model(encode, decode, apply, jax.jit(init), spec_of(variant, config, size), root)


def spec_of(variant: str, config: ClipConfig, size: int) -> ModelSpec:
    """What a variant is at an image size."""
    grid = size // config.image.patch_size
    return ModelSpec(
        name=variant,
        input_shape=size,
        embedding=(grid, grid, config.image.dim),
        logits_shape=grid,
        resize="stretch",
        normalise="mean_std_unit",
        mean=MEAN,
        std=STD,
        prompts=("none",),
        task="features",
        licence="MIT",
        qkv_layout="fused",
        head_dim=config.image.dim // config.image.heads,
        notes="image tower; class token and patch tokens after its final norm; texts by models.clip",
    )
