"""Swin Transformer: image (S, S, 3) -> maps that halve their side and double their channels from stage to stage.

Every second block shifts its windows by half of one, cyclically; tokens that are neighbours only by wrapping around
do not see each other.  A learned table has one number per head for every offset within a window.  Parameter paths are
the keys of microsoft/Swin-Transformer below the module they are put in: ``patch_embed/{proj,norm}``,
``layers_0/blocks_0/{norm1,attn/{qkv,proj,relative_position_bias_table},norm2,mlp/{fc1,fc2}}``,
``layers_0/downsample/{norm,reduction}``, ``norm``.

Interpretation: maps that windows do not fill are padded with zeros behind the first norm of a block and the padding
takes part in the softmax, as in transformers and in the authors' detection code; a map no larger than a window is not
shifted, and the table keeps its size.  Stochastic depth is left out.

Source: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030);
transformers' ``modeling_swin.py`` for the layout of parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import dot_logits, partition, softmax_average, unpartition
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.layers import MlpBlock, costly, features_over_model, layer_norm, undivided

NORM_EPSILON = 1e-5
APART = -100.0  # added to the logits of tokens that are neighbours only because the shift wraps around

_SMALL = nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class SwinConfig:
    """Static shape of a Swin Transformer; stage i has ``dim * 2**i`` channels, 1 / (patch_size * 2**i) of the side."""

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of each stage
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7  # tokens along one side
    patch_size: int = 4
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    def width(self, stage: int) -> int:
        """Channels of a stage, 0 being the finest."""
        return self.dim * 2**stage

    @property
    def reduction(self) -> int:
        """Pixels of the image per token of the last stage, along one side."""
        return self.patch_size * 2 ** (len(self.depths) - 1)


class PatchEmbed(nn.Module):
    """Image (S, S, 3) -> normalised patches (S/p, S/p, dim)."""

    config: SwinConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        patch = (config.patch_size,) * 2
        # A bias as PyTorch starts it: patches of zeros would else be tokens of zeros, in front of whose norms gradients
        # become a few hundred times as large each.
        bound = 1 / np.sqrt(np.prod(patch) * image.shape[-1])
        bias = nn.initializers.uniform(2 * bound)
        x = PatchConv(
            config.dim,
            patch,
            patch,
            bias_init=lambda *args: bias(*args) - bound,
            dtype=config.dtype,
            name="proj",
        )(image.astype(config.dtype))
        return layer_norm("norm", NORM_EPSILON, config.dtype)(x)


class WindowAttention(nn.Module):
    """Self-attention inside windows (n, tokens, c), whose logits may get a ``mask`` (n, tokens, tokens) added.

    axes: of space. Windows of fewer tokens take the first rows and columns of the bias, as MONAI does.
    """

    heads: int
    window: int
    dtype: Any = jnp.float32
    axes: int = 2

    @nn.compact
    def __call__(self, x: Array, mask: np.ndarray | None = None) -> Array:
        channels = x.shape[-1]
        qkv = costly(features_over_model(nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(x)))
        q, k, v = rearrange(qkv, "n t (three heads d) -> three n heads t d", three=3, heads=self.heads)
        shape = ((2 * self.window - 1) ** self.axes, self.heads)
        table = self.param("relative_position_bias_table", _SMALL, shape)
        rows = offsets(self.window, self.axes)[: x.shape[1], : x.shape[1]]
        bias = rearrange(table[rows], "query key heads -> heads query key")
        logits = dot_logits(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k) + bias
        if mask is not None:
            logits = logits + mask[:, None]
        out = rearrange(softmax_average(logits, v), "n heads t d -> n t (heads d)")
        return nn.Dense(channels, dtype=self.dtype, name="proj")(costly(out))


class Block(nn.Module):
    """Pre-norm block, x (h, w, c) -> (h, w, c); ``shifted``: its windows begin half a window further."""

    heads: int
    window: int
    shifted: bool
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        (h, w, channels), window, x = x.shape, self.window, undivided(x)
        y = layer_norm("norm1", NORM_EPSILON, self.dtype)(x)
        y = jnp.pad(y, ((0, -h % window), (0, -w % window), (0, 0)))
        padded = y.shape[:2]
        shift = window // 2 if self.shifted and min(h, w) > window else 0
        y = jnp.roll(y, (-shift, -shift), (0, 1)) if shift else y
        mask = wrapping_mask(padded, (window,) * 2, (shift,) * 2) if shift else None
        attention = WindowAttention(self.heads, window, self.dtype, name="attn")
        y = unpartition(attention(partition(y, window), mask), window, padded)
        y = jnp.roll(y, (shift, shift), (0, 1)) if shift else y
        x = undivided(costly(x + y[:h, :w]))
        mlp = MlpBlock(self.mlp_ratio * channels, dtype=self.dtype, names=("fc1", "fc2"), name="mlp")
        return costly(x + mlp(layer_norm("norm2", NORM_EPSILON, self.dtype)(x)))


class PatchMerging(nn.Module):
    """Every 2 x 2 tokens become one of twice the channels, x (h, w, c) -> (ceil(h/2), ceil(w/2), 2 c)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, channels = x.shape
        x = jnp.pad(x, ((0, h % 2), (0, w % 2), (0, 0)))
        x = rearrange(x, "(h row) (w column) c -> h w (column row c)", row=2, column=2)
        x = layer_norm("norm", NORM_EPSILON, self.dtype)(x)
        return nn.Dense(2 * channels, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Stage(nn.Module):
    """Blocks of one width, x (h, w, c) -> (h, w, c) and, if it merges, the next stage's input (h/2, w/2, 2 c)."""

    depth: int
    heads: int
    window: int
    merges: bool = False
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        for i in range(self.depth):
            shape = (self.heads, self.window, i % 2 == 1, self.mlp_ratio, self.dtype)
            x = Block(*shape, name=f"blocks_{i}")(x)
        return x, PatchMerging(self.dtype, name="downsample")(x) if self.merges else x


class Swin(nn.Module):
    """Image (S, S, 3) -> the map of every stage, (S/p, S/p, dim), (S/2p, S/2p, 2 dim), ..., the last one normalised."""

    config: SwinConfig

    @nn.compact
    def __call__(self, image: Array) -> list[Array]:
        config = self.config
        x, maps = PatchEmbed(config, name="patch_embed")(image), []
        for i, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
            merges = i + 1 < len(config.depths)
            shape = (depth, heads, config.window, merges, config.mlp_ratio, config.dtype)
            found, x = Stage(*shape, name=f"layers_{i}")(x)
            maps.append(found)
        return [*maps[:-1], layer_norm("norm", NORM_EPSILON, config.dtype)(maps[-1])]


class FeatureExtractor(nn.Module):
    """Root module: a Swin Transformer below ``image_encoder``."""

    config: SwinConfig

    def setup(self) -> None:
        self.image_encoder = Swin(self.config)

    def __call__(self, image: Array) -> Array:
        """Image (S, S, 3) -> the last map (S/32, S/32, 8 dim)."""
        return self.image_encoder(image)[-1]

    def encode_stages(self, image: Array) -> list[Array]:
        """Image (S, S, 3) -> the maps of all stages, the finest first."""
        return self.image_encoder(image)


def offsets(window: int, axes: int = 2) -> np.ndarray:
    """Row of the bias table for every pair of tokens in a window, (query, key) of window**axes each.

    Places of query minus key along each axis, each moved to begin at 0, are the digits of a number to the base
    2 window - 1, the first axis first.
    """
    places = np.indices((window,) * axes).reshape(axes, -1)
    apart = places[:, :, None] - places[:, None, :] + window - 1
    base = 2 * window - 1
    return np.tensordot(base ** np.arange(axes)[::-1], apart, 1)


def wrapping_mask(size: Sequence[int], windows: Sequence[int], shifts: Sequence[int]) -> np.ndarray:
    """What is added to the logits in windows of a map that was rolled by ``shifts``: (windows, tokens, tokens).

    Zero for tokens that lay in one part of the map before it was rolled, ``APART`` for others.
    """
    part, axes = np.zeros(size, np.int64), len(size)
    for axis, (n, window, shift) in enumerate(zip(size, windows, shifts, strict=True)):
        if shift:
            place = np.arange(n)
            along = np.where(place < n - window, 0, np.where(place < n - shift, 1, 2))
            part = 3 * part + along.reshape([-1 if a == axis else 1 for a in range(axes)])
    cut = part.reshape([m for n, window in zip(size, windows, strict=True) for m in (n // window, window)])
    part = cut.transpose(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)).reshape(-1, np.prod(windows))
    return np.where(part[:, :, None] == part[:, None, :], 0.0, APART).astype(np.float32)
