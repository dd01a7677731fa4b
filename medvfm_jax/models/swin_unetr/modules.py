"""Swin UNETR: a transformer of shifted windows over volumes whose stages a convolutional decoder joins.

The paths are those of MONAI's network below ``image_encoder``, the classifier below ``mask_decoder/head``.  As there,
outputs of stages pass a layer norm without parameters on their way to the decoder, and the residual blocks are UNETR's.
A window larger than the map shrinks to it and then takes the first rows of the table's index; zeros that fill windows
up take part in attention as the bias of their projection.

Interpretation: a merged cube lists its voxels in the order of MONAI 1.6's default ``downsample="merging"``, which has
each of the eight once.  Until MONAI's pull request 8285 (2025) that default listed two voxels twice and two never;
weights trained with it have the same names and shapes and load, but give other masks.

Source: Hatamizadeh et al. 2022, "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images"
(arXiv 2201.01266); Liu et al. 2021, "Swin Transformer" (arXiv 2103.14030), equations 3 and 4;
``monai.networks.nets.swin_unetr`` for parameter layout.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import LOGITS_PER_STEP, dot_logits, softmax_average
from medvfm_jax.models.backend import backend as current_backend
from medvfm_jax.models.layers import MlpBlock, layer_norm
from medvfm_jax.models.unetr.modules import Residual, UpBlock
from medvfm_jax.types import Prediction

PATCH = 2  # voxels along a side of a token
STRIDE = 32  # of the coarsest map: patches, then four stages that halve it
NORM_EPSILON = 1e-5
APART = -100.0  # added to logits of tokens that only the roll made neighbours

# Places in a cube of 2 x 2 x 2 (depth, row, column), in the order in which a merge lists their channels.
CUBE = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))


@dataclass(frozen=True)
class SwinUnetrConfig:
    """Static shape of a Swin UNETR; stage i has ``features * 2**i`` channels at 1/2**(i + 1) of the side."""

    classes: int
    features: int = 48
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7  # tokens along a side
    mlp_ratio: int = 4
    dtype: Any = jnp.float32


def fit_window(sides: tuple[int, ...], window: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sides of a window on a map, no longer than the map's, and how far it shifts: 0 where it spans the map."""
    return tuple(min(n, window) for n in sides), tuple(0 if n <= window else window // 2 for n in sides)


def offset_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of a cubic window's tokens, (query, key), by query - key."""
    places = np.stack(np.meshgrid(*[np.arange(window)] * 3, indexing="ij"), -1).reshape(-1, 3)
    offsets = places[:, None] - places[None, :] + window - 1
    return offsets @ np.array([(2 * window - 1) ** 2, 2 * window - 1, 1])


def regions(sides: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> np.ndarray:
    """Number of the region of every voxel of a map rolled by ``shift``; windows attend within regions, (D, H, W)."""
    total = np.zeros(sides, np.int32)
    for axis, (n, w, s) in enumerate(zip(sides, window, shift)):
        place = np.arange(n)
        along = np.where(place < n - w, 0, np.where(place < n - s, 1, 2)) if s else np.zeros(n, np.int32)
        total = 3 * total + along.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.int32)
    return total


def partition(x: Any, window: tuple[int, ...]) -> Any:
    """Map (D, H, W, c) of multiples of the window -> windows (n, tokens, c)."""
    i, j, k = window
    return rearrange(x, "(d i) (h j) (w k) c -> (d h w) (i j k) c", i=i, j=j, k=k)


class WindowAttention(nn.Module):
    """Multi-head attention within windows (n, tokens, dim) of regions (n, tokens) -> (n, tokens, dim).

    Regions None: all tokens of a window see each other.  At most ``LOGITS_PER_STEP`` logits are made at once.
    """

    heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, regions: np.ndarray | None) -> Array:
        (n, tokens, dim), heads = x.shape, self.heads
        qkv = nn.Dense(3 * dim, dtype=self.dtype, name="qkv")(x)
        q, k, v = rearrange(qkv, "n t (three heads d) -> three n heads t d", three=3, heads=heads)
        shape = ((2 * self.window - 1) ** 3, heads)
        table = self.param("relative_position_bias_table", nn.initializers.truncated_normal(0.02), shape)
        index = offset_index(self.window)[:tokens, :tokens]
        bias = rearrange(table.astype(jnp.float32)[index], "q k heads -> heads q k")

        def attend(inputs: tuple[Array, ...]) -> Array:
            q, k, v, *region = inputs
            logits = dot_logits(q, k) + bias
            if region:
                logits = logits + jnp.where(region[0][:, None] == region[0][None, :], 0.0, APART)
            return softmax_average(logits, v)

        inputs = (q * (dim // heads) ** -0.5, k, v)
        if regions is not None:
            inputs = (*inputs, jnp.asarray(regions))
        together = LOGITS_PER_STEP.get(current_backend(), LOGITS_PER_STEP[""]) // (heads * tokens**2)
        if n <= together:
            out = jax.vmap(attend)(inputs)
        else:
            out = jax.lax.map(jax.checkpoint(attend), inputs, batch_size=max(1, together))
        return nn.Dense(dim, dtype=self.dtype, name="proj")(rearrange(out, "n heads t d -> n t (heads d)"))


class Block(nn.Module):
    """Pre-norm block of attention in windows, shifted or not, x (D, H, W, dim) -> (D, H, W, dim)."""

    config: SwinUnetrConfig
    heads: int
    shifted: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, dim, sides = self.config, x.shape[-1], x.shape[:3]
        window, shift = fit_window(sides, config.window)
        y = layer_norm("norm1", NORM_EPSILON, config.dtype)(x)
        y = jnp.pad(y, [*((0, -n % w) for n, w in zip(sides, window)), (0, 0)])
        filled, apart = y.shape[:3], None
        if rolls := self.shifted and any(shift):
            y = jnp.roll(y, [-s for s in shift], (0, 1, 2))
            apart = partition(regions(filled, window, shift)[..., None], window)[..., 0]
        y = WindowAttention(self.heads, config.window, config.dtype, name="attn")(partition(y, window), apart)
        (d, h, _), (i, j, k) = (n // w for n, w in zip(filled, window)), window
        y = rearrange(y, "(d h w) (i j k) c -> (d i) (h j) (w k) c", d=d, h=h, i=i, j=j, k=k)
        if rolls:
            y = jnp.roll(y, shift, (0, 1, 2))
        x = x + y[: sides[0], : sides[1], : sides[2]]
        mlp = MlpBlock(config.mlp_ratio * dim, names=("linear1", "linear2"), dtype=config.dtype, name="mlp")
        return x + mlp(layer_norm("norm2", NORM_EPSILON, config.dtype)(x))


class PatchMerging(nn.Module):
    """Cubes of 2 x 2 x 2 become one token: x (d, h, w, c) of even sides -> (d/2, h/2, w/2, 2c)."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = 2 * x.shape[-1]
        x = jnp.concatenate([x[i::2, j::2, k::2] for i, j, k in CUBE], -1)
        x = layer_norm("norm", NORM_EPSILON, self.dtype)(x)
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Stage(nn.Module):
    """Blocks, every second one shifted, and a merge: x (d, h, w, c) -> (d/2, h/2, w/2, 2c)."""

    config: SwinUnetrConfig
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.depth):
            x = Block(self.config, self.heads, i % 2 == 1, name=f"blocks_{i}")(x)
        return PatchMerging(self.config.dtype, name="downsample")(x)


class SwinTransformer(nn.Module):
    """Volume (D, H, W, c) -> normalised outputs of the embedding and of four stages, finest first."""

    config: SwinUnetrConfig

    @nn.compact
    def __call__(self, volume: Array) -> list[Array]:
        config = self.config
        cubes = rearrange(volume, "(d i) (h j) (w k) c -> d h w (i j k c)", i=PATCH, j=PATCH, k=PATCH)
        outputs = [nn.Dense(config.features, dtype=config.dtype, name="patch_embed_proj")(cubes)]
        for i, (depth, heads) in enumerate(zip(config.depths, config.heads), 1):
            outputs.append(Stage(config, depth, heads, name=f"layers{i}_0")(outputs[-1]))
        return [standardise(x) for x in outputs]


def standardise(x: Array) -> Array:
    """Layer norm over channels without parameters, computed in float32; same shape and dtype."""
    wide = x.astype(jnp.float32)
    away = wide - wide.mean(-1, keepdims=True)
    return (away / jnp.sqrt(jnp.square(away).mean(-1, keepdims=True) + NORM_EPSILON)).astype(x.dtype)


class SwinUnetrBody(nn.Module):
    """Volume (D, H, W, c) -> features (D, H, W, features)."""

    config: SwinUnetrConfig

    @nn.compact
    def __call__(self, volume: Array) -> Array:
        config, dtype = self.config, self.config.dtype
        volume = volume.astype(dtype)
        *outputs, fourth, x = SwinTransformer(config, name="swinViT")(volume)
        skips = [Residual(config.features, dtype, name="encoder1_layer")(volume)]
        for i, output in enumerate(outputs, 2):
            skips.append(Residual(output.shape[-1], dtype, name=f"encoder{i}_layer")(output))
        skips.append(fourth)
        x = Residual(x.shape[-1], dtype, name="encoder10_layer")(x)
        for i in reversed(range(5)):
            x = UpBlock(skips[i].shape[-1], dtype, name=f"decoder{i + 1}")(x, skips[i])
        return x


class Classifier(nn.Module):
    """Features (D, H, W, c) -> logits (classes, D, H, W) in float32."""

    config: SwinUnetrConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        logits = nn.Dense(self.config.classes, dtype=self.config.dtype, name="head")(features)
        return rearrange(logits.astype(jnp.float32), "d h w classes -> classes d h w")


class SwinUnetr(nn.Module):
    """Root module: volume (D, H, W, c) -> logits (classes, D, H, W)."""

    config: SwinUnetrConfig

    def setup(self) -> None:
        self.image_encoder = SwinUnetrBody(self.config)
        self.mask_decoder = Classifier(self.config)

    def encode(self, volume: Array) -> Array:
        """Volume (D, H, W, c) -> features (D, H, W, features)."""
        return self.image_encoder(volume)

    def decode(self, features: Array) -> Prediction:
        """Features -> Prediction with logits (classes, D, H, W)."""
        return Prediction(self.mask_decoder(features))

    def __call__(self, volume: Array) -> Prediction:
        return self.decode(self.encode(volume))
