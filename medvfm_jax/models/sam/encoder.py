"""SAM's image encoder, ViT-B/L/H: image (S, S, 3) -> embedding (S/16, S/16, 256).

Most blocks attend inside windows of 14 x 14 tokens, four of them globally; all add decomposed relative
positions to the logits.  Parameters are those of the checkpoint whatever the image size: ``pos_embed`` is
resized bilinearly and the relative positions of global blocks linearly, as the fine-tuned descendants do.

Source: Kirillov et al. 2023, "Segment Anything"; Li et al. 2022, "Exploring Plain Vision Transformer Backbones".
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import grid_attention, map_attention, relative_positions
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import KEEP_COSTLY, MlpBlock, costly, layer_norm, neck, undivided
from medvfm_jax.models.sam.channel_spatial import ChannelSpatialAdapter

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class SamEncoderConfig:
    """Static shape of SAM's image encoder."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    patch_size: int = 16
    pretrain_grid: int = 64  # of pos_embed and of the global blocks' relative positions
    mlp_ratio: int = 4
    out_features: int = 256
    # Fill windows that reach beyond the map before norm1, so with its bias: Medical SAM Adapter, as released.
    pad_before_norm: bool = False
    block_adapters: bool = False  # SAM-Med2D: a module ``Adapter`` parallel to every MLP
    scan_blocks: bool = False
    remat: bool | str = (
        False  # recompute every block (group) in the backward pass, or only what is "between" products
    )
    dtype: Any = jnp.float32

    @property
    def group(self) -> int:
        """Blocks per group: every group is the same run of window blocks that ends with a global one."""
        return self.global_blocks[0] + 1

    @property
    def reduction(self) -> int:
        """Pixels of the image per cell of the embedding, along one side."""
        return self.patch_size


class Attention(nn.Module):
    """Multi-head attention, globally or inside windows, x (h, w, c) -> (h, w, c).

    outside (1, c): the token that windows beyond the map are filled with, zero unless given.
    SAM pads windows that reach beyond the map with zeros and lets them take part in the softmax.  All these
    tokens are one and the same, so ``qkv`` runs on the real tokens and then, in a second call, on one zero
    token: exact with whatever adapts ``qkv`` token by token, and a sixth less work than padding first.
    kept_heads: how many of the heads are left, None for all.
    """

    config: SamEncoderConfig
    is_global: bool
    kept_heads: int | None = None

    @nn.compact
    def __call__(self, x: Array, outside: Array | None = None) -> Array:
        config, (h, w, dim) = self.config, x.shape
        window = config.window
        trained_for = config.pretrain_grid if self.is_global else window
        heads, width = self.kept_heads or config.heads, dim // config.heads
        shape = (2 * trained_for - 1, width)
        table_h = self.param("rel_pos_h", nn.initializers.normal(0.02), shape)
        table_w = self.param("rel_pos_w", nn.initializers.normal(0.02), shape)
        to_qkv = nn.Dense(3 * heads * width, dtype=config.dtype, name="qkv")
        qkv = costly(to_qkv(x))
        if self.is_global:
            q, k, v = rearrange(qkv, "h w (three n d) -> three n (h w) d", three=3, n=heads)
            out = grid_attention(q, k, v, relative_positions(table_h, h), relative_positions(table_w, w))
            out = rearrange(out, "n (h w) d -> h w (n d)", h=h)
        else:
            fits = h % window == 0 and w % window == 0
            outside = jnp.zeros((1, dim), x.dtype) if outside is None else outside
            fill = jnp.zeros(qkv.shape[-1], qkv.dtype) if fits else costly(to_qkv(outside)[0])
            tables = relative_positions(table_h, window), relative_positions(table_w, window)
            out = map_attention(qkv, fill, heads, *tables)
        return nn.Dense(dim, dtype=config.dtype, name="proj")(costly(out))


class Stream(nn.Module):
    """Identity between attention and MLP: a site for adapters that change the input of both norm and residual."""

    def __call__(self, x: Array) -> Array:
        """x (h, w, c) -> the same."""
        return x


class Block(nn.Module):
    """Pre-norm transformer block, x (h, w, c) -> (h, w, c)."""

    config: SamEncoderConfig
    is_global: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, x = self.config, undivided(x)
        norm = layer_norm("norm1", NORM_EPSILON, config.dtype)
        y = norm(x)
        outside = norm(jnp.zeros((1, x.shape[-1]), x.dtype)) if config.pad_before_norm else None
        x = undivided(costly(x + Attention(config, self.is_global, name="attn")(y, outside)))
        x = Stream(name="stream")(x)
        y = layer_norm("norm2", NORM_EPSILON, config.dtype)(x)
        z = MlpBlock(config.mlp_ratio * x.shape[-1], dtype=config.dtype, name="mlp")(y)
        if config.block_adapters:
            z = z + ChannelSpatialAdapter(dtype=config.dtype, name="Adapter")(y)
        return costly(x + z)


class BlockGroup(nn.Module):
    """The body of the scan: window blocks block_0, block_1, ... and a global one, x (h, w, c) -> same."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        for j in range(self.config.group):
            x = Block(self.config, j + 1 == self.config.group, name=f"block_{j}")(x)
        return x, None


class PatchEmbed(nn.Module):
    """Image (S, S, 3) -> (S/p, S/p, c)."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        patch = (self.config.patch_size, self.config.patch_size)
        return PatchConv(self.config.dim, patch, patch, dtype=self.config.dtype, name="proj")(image)


class SamEncoder(nn.Module):
    """Image (S, S, 3) -> embedding (S/16, S/16, 256)."""

    config: SamEncoderConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        x = PatchEmbed(config, name="patch_embed")(image.astype(config.dtype))
        shape = (1, config.pretrain_grid, config.pretrain_grid, config.dim)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape)[0]
        if positions.shape[:2] != x.shape[:2]:
            positions = resize(positions, x.shape[:2], "bilinear")
        x = x + positions.astype(config.dtype)
        policy = KEEP_COSTLY if config.remat == "between" else None
        if config.scan_blocks:
            # Rematerialised inside the scan: unrolled checkpoints hardly save memory on CPU, scanned ones do.
            group = nn.remat(BlockGroup, prevent_cse=False, policy=policy) if config.remat else BlockGroup
            stack = nn.scan(
                group,
                variable_axes={"params": 0, "taps": 0},
                split_rngs={"params": True, "dropout": True},
                length=config.depth // config.group,
            )
            x, _ = stack(config, name="blocks")(x, None)
        else:
            block = nn.remat(Block, policy=policy) if config.remat else Block
            for i in range(config.depth):
                x = block(config, i in config.global_blocks, name=f"blocks_{i}")(x)
        return neck(x, config.out_features, config.dtype)
