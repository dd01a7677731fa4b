"""TinyViT as the image encoder of LiteMedSAM, MobileSAM and TinySAM: image (S, S, 3) -> embedding (h, w, 256).

Convolutional first stage, then three stages of window attention with learned bias tables.  Parameter paths are
the reference's keys: ``image_encoder/layers_1/blocks_0/{attn/norm,attn/qkv,attn/proj,local_conv/c,...}``.
The columns of ``attn/qkv`` are head-major: q, k, v of the first head, then of the second.

Source: Wu et al. 2022, "TinyViT"; Zhang et al. 2023, "Faster Segment Anything" (MobileSAM).
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import dot_logits, pad_with, partition, softmax_average, unpartition
from medvfm_jax.models.convolution import ConvBN
from medvfm_jax.models.layers import gelu, layer_norm, neck

EPSILON = 1e-5  # of the layer norms inside blocks; the neck has SAM's 1e-6


@dataclass(frozen=True)
class TinyViTConfig:
    """Static shape of a TinyViT encoder; one entry per stage.  The defaults are LiteMedSAM's."""

    dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)  # of the convolutional first stage: unused
    windows: tuple[int, ...] = (7, 7, 14, 7)
    merge_strides: tuple[int, ...] = (2, 2, 1)  # between stages; the last one keeps its grid
    stem_stride: int = 1  # of both convolutions of the stem: LiteMedSAM 1 (1x1), MobileSAM 2 (3x3)
    mlp_ratio: int = 4
    out_features: int = 256
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per cell of the embedding, along one side."""
        return self.stem_stride**2 * prod(self.merge_strides)


class Sequence(nn.Module):
    """The stem: two convolutions with a GELU between, image (S, S, 3) -> (S/s^2, S/s^2, dim)."""

    config: TinyViTConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        shape = {
            "kernel_size": 2 * config.stem_stride - 1,
            "stride": config.stem_stride,
            "dtype": config.dtype,
        }
        x = gelu(ConvBN(config.dims[0] // 2, **shape, name="seq_0")(image))
        return ConvBN(config.dims[0], **shape, name="seq_2")(x)


class MBConv(nn.Module):
    """Inverted bottleneck, x (h, w, c) -> (h, w, c): 1x1 to 4 c, depthwise 3x3, 1x1 back, residual, GELU."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = gelu(ConvBN(4 * self.dim, dtype=self.dtype, name="conv1")(x))
        y = gelu(ConvBN(4 * self.dim, 3, depthwise=True, dtype=self.dtype, name="conv2")(y))
        return gelu(x + ConvBN(self.dim, dtype=self.dtype, name="conv3")(y))


class PatchMerging(nn.Module):
    """From one stage to the next, x (h, w, c) -> (h/stride, w/stride, dim)."""

    dim: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = gelu(ConvBN(self.dim, dtype=self.dtype, name="conv1")(x))
        x = gelu(ConvBN(self.dim, 3, self.stride, depthwise=True, dtype=self.dtype, name="conv2")(x))
        return ConvBN(self.dim, dtype=self.dtype, name="conv3")(x)


class Attention(nn.Module):
    """Layer norm and attention inside windows, x (h, w, c) -> (h, w, c), without the residual.

    Where windows reach beyond the map, the reference pads with zeros before its norm and lets the padding take
    part in the softmax.  All these tokens are one and the same, so ``norm`` and ``qkv`` run on the real tokens
    and then, in a second call, on one zero token: exact with whatever adapts these modules token by token.
    kept_heads: how many of ``heads`` are left, None for all.
    """

    heads: int
    window: int
    dtype: Any = jnp.float32
    kept_heads: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, dim = x.shape
        window, heads = self.window, self.kept_heads or self.heads
        norm = layer_norm("norm", EPSILON, self.dtype)
        to_qkv = nn.Dense(3 * heads * (dim // self.heads), dtype=self.dtype, name="qkv")
        qkv = to_qkv(norm(x))
        if h % window or w % window:
            qkv = pad_with(qkv, to_qkv(norm(jnp.zeros((1, dim), x.dtype)))[0], window)
        q, k, v = rearrange(
            partition(qkv, window), "n t (heads three d) -> three n heads t d", three=3, heads=heads
        )
        # One entry per window cell that a token can be away from another, rows and columns unsigned.
        table = self.param("attention_biases", nn.initializers.normal(0.02), (heads, window**2))
        bias = table[:, offset_index(window)]
        logits = dot_logits(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k) + bias
        out = rearrange(softmax_average(logits, v), "n heads t d -> n t (heads d)")
        return nn.Dense(dim, dtype=self.dtype, name="proj")(unpartition(out, window, (h, w)))


@cache
def offset_index(window: int) -> np.ndarray:
    """Entry |dy| * window + |dx| of the bias table for every pair of a window's tokens, (tokens, tokens)."""
    y, x = np.divmod(np.arange(window**2), window)
    return np.abs(y[:, None] - y) * window + np.abs(x[:, None] - x)


class Mlp(nn.Module):
    """Layer norm and MLP, x (..., c) -> (..., c), without the residual."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = layer_norm("norm", EPSILON, self.dtype)(x)
        y = gelu(nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(y))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class TinyViTBlock(nn.Module):
    """Window attention, depthwise convolution, MLP: x (h, w, c) -> (h, w, c)."""

    heads: int
    window: int
    mlp_ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        x = x + Attention(self.heads, self.window, self.dtype, name="attn")(x)
        x = ConvBN(dim, 3, depthwise=True, dtype=self.dtype, name="local_conv")(x)
        return x + Mlp(self.mlp_ratio * dim, self.dtype, name="mlp")(x)


class Stage(nn.Module):
    """All blocks of stage i and the merging after it, x (h, w, dims[i]) -> next stage's input."""

    config: TinyViTConfig
    index: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, i = self.config, self.index
        for j in range(config.depths[i]):
            if i == 0:
                x = MBConv(config.dims[0], config.dtype, name=f"blocks_{j}")(x)
            else:
                shape = config.heads[i], config.windows[i], config.mlp_ratio
                x = TinyViTBlock(*shape, config.dtype, name=f"blocks_{j}")(x)
        if i < len(config.merge_strides):
            merge = PatchMerging(config.dims[i + 1], config.merge_strides[i], config.dtype, name="downsample")
            x = merge(x)
        return x


class TinyViT(nn.Module):
    """Image (S, S, 3) -> embedding (S/r, S/r, 256), r = ``config.reduction``."""

    config: TinyViTConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        x = Sequence(config, name="patch_embed")(image.astype(config.dtype))
        for i in range(len(config.dims)):
            x = Stage(config, i, name=f"layers_{i}")(x)
        return neck(x, config.out_features, config.dtype)
