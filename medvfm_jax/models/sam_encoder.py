"""SAM's ViT-B/L/H image encoder, image (S, S, 3) -> (S/16, S/16, 256).

Source: Kirillov et al. 2023, Li et al. 2022 (ViTDet); segment-anything's ``image_encoder.py`` for the behaviour:
windows of 14 are padded with zeros after the first norm and padded tokens take part in the softmax.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.attention import attention, relative_positions
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import Mlp, apply_neck, join_windows, pad_to_multiple, split_windows


@dataclass(frozen=True)
class SamEncoderConfig:
    """Static shape of SAM's image encoder."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    patch_size: int = 16
    grid: int = 64  # of the input: image side / patch_size
    pretrain_grid: int = 64  # of pos_embed and of the global blocks' relative positions
    mlp_ratio: int = 4
    out_features: int = 256
    scan_blocks: bool = False
    remat: bool = False  # recompute every block in the backward pass
    dtype: Any = jnp.float32

    @property
    def group(self) -> int:
        """Blocks per group: every group is the same run of window blocks that ends with a global one."""
        return self.global_blocks[0] + 1


class Attention(nn.Module):
    """x (groups, n, n, dim) -> same; n is the window, or the grid in global blocks."""

    heads: int
    table_size: int  # n that the relative positions were trained for
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, dim = x.shape[-2:]
        zeros, shape = nn.initializers.zeros, (2 * self.table_size - 1, dim // self.heads)
        rel_h = relative_positions(self.param("rel_pos_h", zeros, shape), n)
        rel_w = relative_positions(self.param("rel_pos_w", zeros, shape), n)
        qkv = nn.Dense(3 * dim, dtype=self.dtype, name="qkv")(x)
        return nn.Dense(dim, dtype=self.dtype, name="proj")(attention(qkv, rel_h, rel_w, self.heads))


class Block(nn.Module):
    """x (h, w, dim) -> same: (window) attention and MLP, pre-norm."""

    config: SamEncoderConfig
    is_global: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, dtype = self.config, self.config.dtype
        height, width, dim = x.shape
        table = config.pretrain_grid if self.is_global else config.window
        attend = Attention(config.heads, table, dtype, name="attn")
        y = nn.LayerNorm(1e-6, dtype=dtype, name="norm1")(x)
        if self.is_global:
            y = attend(y[None])[0]
        else:
            window = config.window
            padded = pad_to_multiple(y, window)
            windows = split_windows(padded, window).reshape(-1, window, window, dim)
            y = attend(windows).reshape(-1, window**2, dim)
            y = join_windows(y, window, *padded.shape[:2])[:height, :width]
        x = x + y
        y = nn.LayerNorm(1e-6, dtype=dtype, name="norm2")(x)
        return x + Mlp(config.mlp_ratio * dim, dtype=dtype, name="mlp")(y)


class BlockGroup(nn.Module):
    """The body of the scan: window blocks block_0, block_1, ... and a global one, x (h, w, dim) -> same."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        for j in range(self.config.group):
            is_global = j + 1 == self.config.group
            x = Block(self.config, is_global, name=f"block_{j}")(x)
        return x, None


class PatchEmbed(nn.Module):
    """Image (S, S, 3) -> (S/p, S/p, dim)."""

    dim: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, image: Array) -> Array:
        patch = (self.patch_size, self.patch_size)
        return nn.Conv(self.dim, patch, patch, "VALID", dtype=self.dtype, name="proj")(image)


class SamEncoder(nn.Module):
    """Image (S, S, 3) -> embedding (S/16, S/16, 256)."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        x = PatchEmbed(config.dim, config.patch_size, config.dtype, name="patch_embed")(
            image.astype(config.dtype)
        )
        shape = (1, config.pretrain_grid, config.pretrain_grid, config.dim)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape)[0]
        if positions.shape[:2] != x.shape[:2]:
            positions = resize(positions, x.shape[:2], "bilinear")
        x = x + positions.astype(config.dtype)
        if config.scan_blocks:
            group = nn.remat(BlockGroup, prevent_cse=False) if config.remat else BlockGroup
            stack = nn.scan(
                group,
                variable_axes={"params": 0, "taps": 0},
                split_rngs={"params": True},
                length=config.depth // config.group,
            )
            x, _ = stack(config, name="blocks")(x, None)
        else:
            block = nn.remat(Block) if config.remat else Block
            for i in range(config.depth):
                x = block(config, i in config.global_blocks, name=f"blocks_{i}")(x)
        return apply_neck(x, config.out_features, config.dtype)
