"""EfficientSAM's image encoder, a plain ViT: image (S, S, 3) -> embedding (S/16, S/16, 256).

All blocks attend globally, without relative positions; ``pos_embed`` is that of 224 pixels with a class token, which is
left out, and is resized bicubically.  With a ``dilation`` r blocks attend, in turn, within r segments of neighbouring
tokens and among every r-th token (SAM-Lightening): a token reaches every other one in two blocks.

Sources: Xiong et al. 2024, "EfficientSAM"; the release's efficient_sam/efficient_sam_encoder.py.  Song et al. 2024,
"SAM-Lightening", of which the abstract was read: how segments and dilation follow each other is our interpretation.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import neck
from medvfm_jax.models.model import Model
from medvfm_jax.models.vit.modules import Block, ViTConfig


@dataclass(frozen=True)
class EfficientSamConfig:
    """Static shape of EfficientSAM's image encoder; the defaults are those of the tiny one."""

    dim: int = 192
    depth: int = 12
    heads: int = 3
    patch_size: int = 16
    pretrain_grid: int = 14  # of pos_embed
    mlp_ratio: int = 4
    out_features: int = 256
    dilation: int = 1
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per cell of the embedding, along one side."""
        return self.patch_size

    def block(self, number: int) -> ViTConfig:
        """Of a block: with dilation, even ones attend within segments and odd ones among every r-th token."""
        apart = "segments" if number % 2 == 0 else "dilation"
        return ViTConfig(
            self.dim,
            self.depth,
            self.heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            **{apart: self.dilation},
        )


class PatchEmbed(nn.Module):
    """Image (S, S, 3) -> (S/p, S/p, dim)."""

    config: EfficientSamConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        patch = (self.config.patch_size,) * 2
        return PatchConv(self.config.dim, patch, patch, dtype=self.config.dtype, name="proj")(image)


class EfficientSamEncoder(nn.Module):
    """Image (S, S, 3) -> embedding (S/p, S/p, 256).

    kept: numbers of the tokens that are seen, (n,); then tokens (n, dim) come out as the last block leaves them.
    """

    config: EfficientSamConfig

    @nn.compact
    def __call__(self, image: Array, kept: Array | None = None) -> Array:
        config, side = self.config, self.config.pretrain_grid
        x = PatchEmbed(config, name="patch_embed")(image.astype(config.dtype))
        h, w = x.shape[:2]
        positions = self.param("pos_embed", nn.initializers.normal(0.02), (1, 1 + side**2, config.dim))
        positions = rearrange(positions[0, 1:], "(h w) c -> h w c", h=side)
        x = x + resize(positions, (h, w), "bicubic").astype(config.dtype)
        x = rearrange(x, "h w c -> (h w) c")
        x = x if kept is None else x[kept]
        for i in range(config.depth):
            x = Block(config.block(i), name=f"blocks_{i}")(x)
        if kept is not None:
            return x
        return neck(rearrange(x, "(h w) c -> h w c", h=h), config.out_features, config.dtype)


def tokens_of(model: Model) -> int:
    """Width of the tokens of a model's image encoder; 0 for one that has none which could be left out."""
    encoder = getattr(model.root, "encoder", None)
    plain = isinstance(encoder, EfficientSamEncoder) and encoder.config.dilation == 1
    return encoder.config.dim if plain else 0
