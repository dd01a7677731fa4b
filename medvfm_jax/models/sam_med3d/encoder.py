"""SAM-Med3D's image encoder: patch of a volume (D, H, W, 1) -> embedding (D/16, H/16, W/16, 384).

SAM's encoder with a third axis: tokens are cubes of 16 voxels, and relative positions are decomposed along depth, rows
and columns.  Of the patch of 128 voxels it was trained on, the 8 x 8 x 8 tokens are fewer than one window of 14, which
the release fills up with zeros that take part in the softmax.  Parameters are those of that patch for every size;
``pos_embed`` is resized trilinearly and the relative positions of global blocks linearly, which is our choice: the
release takes one size.

Source: Wang et al. 2023, "SAM-Med3D" (arXiv 2310.15161); uni-medical/SAM-Med3D,
``segment_anything/modeling/image_encoder3D.py``.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import dot_logits, relative_positions, softmax_average
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.layers import MlpBlock, features_over_model, layer_norm, undivided

PATCH = 16  # voxels along a side of a token
NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class Encoder3dConfig:
    """Static shape of the image encoder.

    Attributes:
        dim: features of a token.
        depth: blocks.
        heads: of each block's attention.
        global_blocks: blocks that attend to all tokens, the others inside windows.
        window: tokens along a side of a window.
        grid: tokens along a side of the patch that the weights were trained on.
        out_features: of the embedding.
        remat: recompute blocks in the backward pass.
        dtype: of the computation.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    grid: int = 8
    out_features: int = 384
    remat: bool = False
    dtype: Any = jnp.float32


class Attention(nn.Module):
    """Multi-head attention, globally or inside windows, x (n, n, n, c) -> (n, n, n, c)."""

    config: Encoder3dConfig
    is_global: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, dim = self.config, x.shape[-1]
        trained_for = config.grid if self.is_global else config.window
        shape = (2 * trained_for - 1, dim // config.heads)
        tables = [
            self.param(f"rel_pos_{axis}", nn.initializers.normal(0.02), shape).astype(config.dtype)
            for axis in "dhw"
        ]
        to_qkv = nn.Dense(3 * dim, dtype=config.dtype, name="qkv")
        qkv = features_over_model(to_qkv(x))
        if self.is_global:
            positions = [relative_positions(table, x.shape[0]) for table in tables]
            out = volume_attention(qkv, positions, config.heads)
        else:
            # What lies beyond the map is one and the same token, so the projection sees it once.
            fill = to_qkv(jnp.zeros((1, dim), x.dtype))[0]
            positions = [relative_positions(table, config.window) for table in tables]
            out = windowed(qkv, fill, positions, config)
        return nn.Dense(dim, dtype=config.dtype, name="proj")(out)


def windowed(qkv: Array, fill: Array, positions: list[Array], config: Encoder3dConfig) -> Array:
    """Attention inside windows, qkv (n, n, n, 3c) -> (n, n, n, c); ``fill`` (3c,) stands beyond the map."""
    n, side = qkv.shape[0], config.window
    margin = -n % side
    # Padding with the fill, written as padding with zeros.
    padded = jnp.pad(qkv - fill, [*((0, margin),) * 3, (0, 0)]) + fill
    if n <= side:  # one window: what lies beyond the map asks nothing
        return volume_attention(padded, positions, config.heads, n)
    windows = rearrange(padded, "(d i) (h j) (w k) c -> (d h w) i j k c", i=side, j=side, k=side)
    out = jax.lax.map(lambda w: volume_attention(w, positions, config.heads), windows)
    out = rearrange(
        out, "(d h w) i j k c -> (d i) (h j) (w k) c", d=(n + margin) // side, h=(n + margin) // side
    )
    return out[:n, :n, :n]


def volume_attention(qkv: Array, positions: list[Array], heads: int, asking: int | None = None) -> Array:
    """Attention with decomposed relative positions among the tokens of a cube.

    As released, with which the weights were trained, the three biases do not lie along the axes of their names: that of
    the depth counts along the keys' columns, and those of rows and columns are of the queries of the same slice and row
    whose column is the key's slice, and the key's row, along the keys' columns too.

    Args:
        qkv: queries, keys and values (n, n, n, 3c).
        positions: relative positions along depth, rows and columns, each (n, n, c/heads), query before key.
        heads: of the attention.
        asking: tokens along each side, from the first, whose queries count; None: all.

    Returns:
        (asking, asking, asking, c).

    References:
        Li et al. 2022 (MViTv2), https://arxiv.org/abs/2112.01526, equation 4, with a third axis;
        uni-medical/SAM-Med3D, ``image_encoder3D.add_decomposed_rel_pos``
    """
    n = asking or qkv.shape[0]
    q, k, v = rearrange(qkv, "d h w (three n c) -> three n d h w c", three=3, n=heads)
    kind = {"preferred_element_type": jnp.float32}
    # d, h, w: of the query; i, j, k: of the key.
    by_slice = jnp.einsum("ndhwc,dkc->ndhwk", q[:, :n, :n, :n], positions[0][:n], **kind)
    by_row = jnp.einsum("ndhic,hkc->ndhik", q[:, :n, :n], positions[1][:n], **kind)
    by_column = jnp.einsum("ndhjc,jkc->ndhjk", q[:, :n, :n], positions[2], **kind)
    of_keys = by_row[:, :, :, :, None] + by_column[:, :, :, None]
    bias = by_slice[:, :, :, :, None, None] + of_keys[:, :, :, None]
    flat = "n d h w c -> n (d h w) c"
    scaled = rearrange(q[:, :n, :n, :n] * (q.shape[-1] ** -0.5), flat)
    logits = dot_logits(scaled, rearrange(k, flat)) + rearrange(bias, "n d h w i j k -> n (d h w) (i j k)")
    out = softmax_average(logits, rearrange(v, flat))
    return rearrange(out, "n (d h w) c -> d h w (n c)", d=n, h=n)


class Block(nn.Module):
    """Pre-norm transformer block, x (d, h, w, c) -> (d, h, w, c)."""

    config: Encoder3dConfig
    is_global: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, x = self.config, undivided(x)
        y = layer_norm("norm1", NORM_EPSILON, config.dtype)(x)
        x = undivided(x + Attention(config, self.is_global, name="attn")(y))
        y = layer_norm("norm2", NORM_EPSILON, config.dtype)(x)
        return x + MlpBlock(4 * x.shape[-1], dtype=config.dtype, name="mlp")(y)


class PatchEmbed(nn.Module):
    """Volume (D, H, W, c) -> (D/16, H/16, W/16, dim); windows do not overlap, so it is one matrix product."""

    config: Encoder3dConfig

    @nn.compact
    def __call__(self, volume: Array) -> Array:
        cubes = rearrange(volume, "(d i) (h j) (w k) c -> d h w (i j k c)", i=PATCH, j=PATCH, k=PATCH)
        return nn.Dense(self.config.dim, dtype=self.config.dtype, name="proj")(cubes)


class Encoder3d(nn.Module):
    """Patch of a volume (D, H, W, 1) -> embedding (D/16, H/16, W/16, out_features)."""

    config: Encoder3dConfig

    @nn.compact
    def __call__(self, volume: Array) -> Array:
        config = self.config
        x = PatchEmbed(config, name="patch_embed")(volume.astype(config.dtype))
        shape = (1, config.grid, config.grid, config.grid, config.dim)
        positions = self.param("pos_embed", nn.initializers.normal(0.02), shape)[0]
        if positions.shape != x.shape:
            positions = jax.image.resize(positions, x.shape, "linear", antialias=False)
        x = x + positions.astype(config.dtype)
        block = nn.remat(Block) if config.remat else Block
        for i in range(config.depth):
            x = block(config, i in config.global_blocks, name=f"blocks_{i}")(x)
        options = {"use_bias": False, "dtype": config.dtype}
        x = nn.Dense(config.out_features, **options, name="neck_0")(x)
        x = layer_norm("neck_1", NORM_EPSILON, config.dtype)(x)
        x = Conv(config.out_features, (3, 3, 3), padding=1, **options, name="neck_2")(x)
        return layer_norm("neck_3", NORM_EPSILON, config.dtype)(x)
