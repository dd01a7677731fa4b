"""MONAI's vision transformer over the cubes of a volume, with learned positions.

Source: ``monai.networks.nets.vit.ViT`` and its ``PatchEmbeddingBlock``; Dosovitskiy et al. 2021 (arXiv 2010.11929).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import attend
from medvfm_jax.models.layers import MlpBlock, features_over_model, layer_norm, undivided

NORM_EPSILON = 1e-5  # PyTorch's default


@dataclass(frozen=True)
class TransformerConfig:
    """Static shape of a transformer over a volume.

    Attributes:
        dim: features of a token.
        depth: blocks.
        heads: of each block's attention.
        mlp: width inside of a block's MLP.
        patch: voxels of a token along depth, rows and columns.
        grid: tokens along each axis that the positions are stored for; None: those of the volume.
        remat: recompute blocks in the backward pass.
        dtype: of the computation.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    patch: tuple[int, int, int] = (16, 16, 16)
    grid: tuple[int, int, int] | None = None
    remat: bool = False
    dtype: Any = jnp.float32


class Attention(nn.Module):
    """Multi-head self-attention without biases of q, k and v, x (tokens, dim) -> (tokens, dim)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim, heads, dtype = self.config.dim, self.config.heads, self.config.dtype
        qkv = features_over_model(nn.Dense(3 * dim, use_bias=False, dtype=dtype, name="qkv")(x))
        q, k, v = rearrange(qkv, "tokens (three heads d) -> three heads tokens d", three=3, heads=heads)
        out = attend(q * (dim // heads) ** -0.5, k, v)
        return nn.Dense(dim, dtype=dtype, name="out_proj")(
            rearrange(out, "heads tokens d -> tokens (heads d)")
        )


class Block(nn.Module):
    """Pre-norm transformer block, x (tokens, dim) -> (tokens, dim)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, x = self.config, undivided(x)
        x = undivided(x + Attention(config, name="attn")(layer_norm("norm1", NORM_EPSILON, config.dtype)(x)))
        mlp = MlpBlock(config.mlp, names=("linear1", "linear2"), dtype=config.dtype, name="mlp")
        return x + mlp(layer_norm("norm2", NORM_EPSILON, config.dtype)(x))


class PatchEmbedding(nn.Module):
    """Volume (D, H, W, c) -> tokens (d, h, w, dim) with learned positions.

    A convolution whose windows do not overlap is one matrix product; its kernel's rows are (depth, row, column, c).
    Positions of another grid than the stored one are resized trilinearly, which is our choice.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, volume: Array) -> Array:
        config = self.config
        sides = dict(zip("ijk", config.patch, strict=True))
        cubes = rearrange(volume, "(d i) (h j) (w k) c -> d h w (i j k c)", **sides)
        tokens = nn.Dense(config.dim, dtype=config.dtype, name="patch_embeddings")(cubes)
        grid = config.grid or tokens.shape[:3]
        shape = (1, grid[0] * grid[1] * grid[2], config.dim)
        positions = self.param("position_embeddings", nn.initializers.truncated_normal(0.02), shape)
        positions = positions.reshape(*grid, config.dim)
        if positions.shape != tokens.shape:
            positions = jax.image.resize(positions, tokens.shape, "linear", antialias=False)
        return tokens + positions.astype(config.dtype)


class Transformer(nn.Module):
    """Volume (D, H, W, c) -> outputs of the blocks in ``skips`` and of the final norm, each (d, h, w, dim)."""

    config: TransformerConfig
    skips: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, volume: Array) -> tuple[Array, ...]:
        config, found = self.config, []
        x = PatchEmbedding(config, name="patch_embedding")(volume)
        grid, x = x.shape, x.reshape(-1, config.dim)
        block = nn.remat(Block) if config.remat else Block
        for i in range(config.depth):
            x = block(config, name=f"blocks_{i}")(x)
            if i in self.skips:
                found.append(x)
        found.append(layer_norm("norm", NORM_EPSILON, config.dtype)(x))
        return tuple(x.reshape(grid) for x in found)
