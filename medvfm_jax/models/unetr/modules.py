"""UNETR: a vision transformer over cubes of 16 voxels whose layers a convolutional decoder joins, patch by patch.

The paths are those of MONAI's network below ``image_encoder``, the classifier below ``mask_decoder/head``.  As there,
instance normalisation learns no scale, and the skips are the outputs of blocks 3, 6 and 9, counted from 0 (the paper
counts z3, z6, z9 from 1).

Source: Hatamizadeh et al. 2022, "UNETR: Transformers for 3D Medical Image Segmentation" (arXiv 2103.10504);
``monai.networks.nets.unetr`` for parameter layout.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.unetr.transformer import NORM_EPSILON, Transformer, TransformerConfig

PATCH = 16  # voxels along a side of a token; the decoder doubles four times
_SLOPE = 0.01


@dataclass(frozen=True)
class UnetrConfig:
    """Static shape of a UNETR; level i of the decoder has ``features * 2**i`` channels at 1/2**i of the side."""

    classes: int
    features: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    skips: tuple[int, int, int] = (3, 6, 9)  # blocks whose outputs go to levels 1, 2 and 3
    dtype: Any = jnp.float32

    def width(self, level: int) -> int:
        """Channels at a level, 0 being the finest."""
        return self.features * 2**level

    @property
    def transformer(self) -> TransformerConfig:
        """Its share of the shape."""
        return TransformerConfig(self.dim, self.depth, self.heads, self.mlp, (PATCH,) * 3, dtype=self.dtype)


class Doubled(nn.Module):
    """Transposed convolution of 2 x 2 x 2 with stride 2: x (d, h, w, c) -> (2d, 2h, 2w, width), without bias.

    Its windows do not overlap, so it is one matrix product and a rearrangement.
    """

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(8 * self.width, use_bias=False, dtype=self.dtype, name="conv")(x)
        return rearrange(x, "d h w (i j k c) -> (d i) (h j) (w k) c", i=2, j=2, k=2)


class Convolution(nn.Module):
    """3 x 3 x 3 convolution and instance norm, both without parameters beside the kernel: (d, h, w, c) -> (.., width).

    size: 1 for the projection of a residual.
    """

    width: int
    dtype: Any
    size: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.size == 1:
            x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="conv")(x)
        else:
            x = Conv(self.width, (self.size,) * 3, use_bias=False, dtype=self.dtype, name="conv")(x)
        wide = x.astype(jnp.float32)
        away = wide - wide.mean((0, 1, 2))
        return (away / jnp.sqrt(jnp.square(away).mean((0, 1, 2)) + NORM_EPSILON)).astype(self.dtype)


class Residual(nn.Module):
    """Two convolutions with a residual around them: x (d, h, w, c) -> (d, h, w, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.leaky_relu(Convolution(self.width, self.dtype, name="conv1")(x), _SLOPE)
        y = Convolution(self.width, self.dtype, name="conv2")(y)
        if x.shape[-1] != self.width:
            x = Convolution(self.width, self.dtype, 1, name="conv3")(x)
        return nn.leaky_relu(x + y, _SLOPE)


class SkipPath(nn.Module):
    """Tokens (d, h, w, dim) -> (d * 2**times, ..., width): doubled, then doubled and convolved."""

    width: int
    times: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Doubled(self.width, self.dtype, name="transp_conv_init")(x)
        for i in range(self.times - 1):
            x = Doubled(self.width, self.dtype, name=f"blocks_{i}_0")(x)
            x = Residual(self.width, self.dtype, name=f"blocks_{i}_1")(x)
        return x


class UpBlock(nn.Module):
    """x (d, h, w, c) and a skip of twice its side -> (2d, 2h, 2w, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, skip: Array) -> Array:
        x = Doubled(self.width, self.dtype, name="transp_conv")(x)
        return Residual(self.width, self.dtype, name="conv_block")(jnp.concatenate([x, skip], axis=-1))


class UnetrBody(nn.Module):
    """Volume (D, H, W, c) -> features (D, H, W, features)."""

    config: UnetrConfig

    @nn.compact
    def __call__(self, volume: Array) -> Array:
        config, dtype = self.config, self.config.dtype
        volume = volume.astype(dtype)
        *outputs, x = Transformer(config.transformer, config.skips, name="vit")(volume)
        skips = [Residual(config.width(0), dtype, name="encoder1_layer")(volume)]
        for level, tokens in enumerate(outputs, 1):
            skips.append(SkipPath(config.width(level), 4 - level, dtype, name=f"encoder{level + 1}")(tokens))
        for level in reversed(range(4)):
            x = UpBlock(config.width(level), dtype, name=f"decoder{level + 2}")(x, skips[level])
        return x


class Classifier(nn.Module):
    """Features (D, H, W, c) -> logits (classes, D, H, W) in float32."""

    config: UnetrConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        logits = nn.Dense(self.config.classes, dtype=self.config.dtype, name="head")(features)
        return rearrange(logits.astype(jnp.float32), "d h w classes -> classes d h w")


class Unetr(EncoderDecoder):
    """Root module: volume (D, H, W, c) -> logits (classes, D, H, W)."""

    config: UnetrConfig

    def setup(self) -> None:
        self.image_encoder = UnetrBody(self.config)
        self.mask_decoder = Classifier(self.config)
