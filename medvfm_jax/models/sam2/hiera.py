"""Hiera, the image encoder of SAM 2: image (S, S, 3) -> one map per stage, each half as large and twice as wide.

Most blocks attend inside windows, a few of the third stage globally; the first block of a stage takes the largest query
of every 2 x 2 tokens, so that its output is half as large.  Positions are a small table, enlarged bicubically, and one
of the size of a window, repeated; there are no relative positions.

Sources: Ryali et al. 2023, "Hiera"; Bolya et al. 2023, "Window Attention is Bugged"; Ravi et al. 2024, "SAM 2",
appendix C; facebookresearch/sam2, ``sam2/modeling/backbones/hieradet.py``.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import Array

from medvfm_jax.models.attention import attend_in_steps, pad_with, partition, unpartition
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import KEEP_COSTLY, MlpBlock, costly, layer_norm, undivided

NORM_EPSILON = 1e-6
POOL = 2  # tokens along one side of which the first block of a stage makes one
PATCH_STRIDE = 4


@dataclass(frozen=True)
class HieraConfig:
    """Static shape of the image encoder: of the tiny model unless said."""

    dim: int = 96  # of the first stage; doubled from stage to stage, as the heads are
    heads: int = 1
    stages: tuple[int, ...] = (1, 2, 7, 2)  # blocks of each
    global_blocks: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, ...] = (8, 4, 14, 7)  # tokens along one side, per stage
    background: int = 7  # side of the position table of the whole map
    mlp_ratio: int = 4
    out_features: int = 256
    remat: bool | str = False  # recompute every block in the backward pass, or what is "between" products
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per token of the last stage, along one side."""
        return PATCH_STRIDE * POOL ** (len(self.stages) - 1)


class MultiScaleAttention(nn.Module):
    """Multi-head attention on a map, x (h, w, c) -> (h, w, features), or half the sides if queries are pooled.

    window: tokens along one side, None: global.  Windows that reach beyond the map are filled with zeros that take part
    in the softmax; as in ``sam.encoder`` ``qkv`` runs on the real tokens and, in a second call, on one zero token.
    """

    features: int
    heads: int
    window: int | None
    pool: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (h, w, channels), window, shrunk = x.shape, self.window, POOL if self.pool else 1
        to_qkv = nn.Dense(3 * self.features, dtype=self.dtype, name="qkv")
        qkv = costly(to_qkv(x))
        if window is None:
            out = self._attend(qkv[None])[0]
        else:
            if h % window or w % window:
                qkv = pad_with(qkv, costly(to_qkv(jnp.zeros((1, channels), x.dtype))[0]), window)
            windows = rearrange(partition(qkv, window), "n (h w) c -> n h w c", h=window)
            out = rearrange(self._attend(windows), "n h w c -> n (h w) c")
            out = unpartition(out, window // shrunk, (h // shrunk, w // shrunk))
        return nn.Dense(self.features, dtype=self.dtype, name="proj")(costly(out))

    def _attend(self, qkv: Array) -> Array:
        """Windows (n, h, w, 3 * features) as [q|k|v] -> (n, h, w, features), or half the sides."""
        q, k, v = jnp.split(qkv, 3, axis=-1)
        q = pooled(q) if self.pool else q
        h, count = q.shape[1], len(q)
        q, k, v = (rearrange(t, "n h w (heads d) -> (n heads) (h w) d", heads=self.heads) for t in (q, k, v))
        out = attend_in_steps(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v)
        return rearrange(out, "(n heads) (h w) d -> n h w (heads d)", n=count, h=h)


class Block(nn.Module):
    """Pre-norm block, x (h, w, c) -> (h, w, features); the first of a later stage pools and projects its input too."""

    features: int
    heads: int
    window: int | None
    pool: bool
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x, dtype = undivided(x), self.dtype
        y = layer_norm("norm1", NORM_EPSILON, dtype)(x)
        if self.pool:
            x = pooled(nn.Dense(self.features, dtype=dtype, name="proj")(y))
        attention = MultiScaleAttention(self.features, self.heads, self.window, self.pool, dtype, name="attn")
        x = undivided(costly(x + attention(y)))
        y = layer_norm("norm2", NORM_EPSILON, dtype)(x)
        return costly(x + MlpBlock(self.mlp_ratio * self.features, dtype=dtype, name="mlp")(y))


class PatchEmbed(nn.Module):
    """Image (S, S, 3) -> (S/4, S/4, features), by overlapping windows of 7 x 7 pixels."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        stride, padding = (PATCH_STRIDE,) * 2, ((3, 3), (3, 3))
        return Conv(self.features, (7, 7), stride, padding, dtype=self.dtype, name="proj")(image)


def embedded_patches(config: HieraConfig, module: nn.Module, image: Array) -> Array:
    """Image (S, S, 3) -> patches with positions (S/4, S/4, dim); the parameters become those of ``module``."""
    x = PatchEmbed(config.dim, config.dtype, name="patch_embed")(image.astype(config.dtype))
    small, size = nn.initializers.normal(0.02), (config.background,) * 2
    # As in the checkpoints: channels first.
    whole = module.param("pos_embed", small, (1, config.dim, *size))
    window = module.param("pos_embed_window", small, (1, config.dim, config.windows[0], config.windows[0]))
    positions = resize(jnp.moveaxis(whole[0], 0, -1), x.shape[:2], "bicubic")
    repeats = (x.shape[0] // config.windows[0], x.shape[1] // config.windows[0], 1)
    positions = positions + jnp.tile(jnp.moveaxis(window[0], 0, -1), repeats)
    return x + positions.astype(config.dtype)


def stage_maps(config: HieraConfig, x: Array) -> list[Array]:
    """Patches (h, w, dim) -> the last map of every stage, (h, w, dim), (h/2, w/2, 2 dim), ...

    Call it inside a compact method: the blocks become its module's, ``blocks_0``, ``blocks_1``, ...
    """
    policy = KEEP_COSTLY if config.remat == "between" else None
    block, maps, index = nn.remat(Block, policy=policy) if config.remat else Block, [], 0
    for stage, count in enumerate(config.stages):
        for i in range(count):
            pool = stage > 0 and i == 0
            window = config.windows[stage - pool]  # pooling happens inside windows of the stage before
            x = block(
                config.dim * 2**stage,
                config.heads * 2**stage,
                None if index in config.global_blocks else window,
                pool,
                config.mlp_ratio,
                config.dtype,
                name=f"blocks_{index}",
            )(x)
            index += 1
        maps.append(x)
    return maps


def pooled(x: Array) -> Array:
    """The largest of every 2 x 2 tokens, channel by channel: x (..., h, w, c) -> (..., h/2, w/2, c)."""
    return reduce(x, "... (h p) (w q) c -> ... h w c", "max", p=POOL, q=POOL)
