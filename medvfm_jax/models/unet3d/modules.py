"""3-D U-Net with a residual encoder, the shape that nnU-Net plans, and the same on folded voxels for CPUs.

Stage i of the encoder has ``blocks[i]`` residual blocks of two convolutions, the first of which halves every side
except in stage 0; a residual that is halved is averaged over 2 x 2 x 2, one that changes its width is projected.  The
decoder has one convolution per stage, and every stage of it a classifier of its own: the coarser ones are trained with
the finest (deep supervision) and not used afterwards.

With ``fold`` 2 the voxels of each 2 x 2 x 2 cube are the channels of one, and the classifiers give all of them at once:
a finest stage of 16 channels would take most of the time on a CPU and use a quarter of its arithmetic.

Source: Isensee et al. 2021, "nnU-Net" (https://doi.org/10.1038/s41592-020-01008-z), and Isensee et al. 2024, "nnU-Net
Revisited" (arXiv 2404.09556), whose ResEnc plans have these blocks; instance norm, leaky ReLU, biases as there.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import Array

from medvfm_jax.models.convolution_3d import Conv3d
from medvfm_jax.types import Prediction

_HE = nn.initializers.he_normal()
_SLOPE = 0.01
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class UNet3dConfig:
    """Static shape of a 3-D U-Net; stage i has ``widths[i]`` channels at 1/(fold 2**i) of the side."""

    classes: int
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 3, 4, 6)
    fold: int = 1
    dtype: Any = jnp.float32

    @property
    def multiple(self) -> int:
        """What every side of the input has to be a multiple of."""
        return self.fold * 2 ** (len(self.widths) - 1)


class InstanceNorm(nn.Module):
    """Each channel of one volume to mean 0 and variance 1, then scaled and shifted: (d, h, w, c) -> the same."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        wide = x.astype(jnp.float32)
        away = wide - wide.mean((0, 1, 2))
        inverse = jnp.square(away).mean((0, 1, 2)) + NORM_EPSILON
        return (away * (scale / jnp.sqrt(inverse)) + bias).astype(self.dtype)


class ConvNorm(nn.Module):
    """Convolution and instance norm: x (d, h, w, c) -> (d/s, h/s, w/s, width)."""

    width: int
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv3d(self.width, self.stride, self.dtype, name="conv")(x)
        return InstanceNorm(self.dtype, name="norm")(x)


class ResidualBlock(nn.Module):
    """Two convolutions with a residual around them: x (d, h, w, c) -> (d/s, h/s, w/s, width)."""

    width: int
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.leaky_relu(ConvNorm(self.width, self.dtype, self.stride, name="conv1")(x), _SLOPE)
        y = ConvNorm(self.width, self.dtype, name="conv2")(y)
        if self.stride == 2:
            x = reduce(x, "(d i) (h j) (w k) c -> d h w c", "mean", i=2, j=2, k=2)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, use_bias=False, kernel_init=_HE, dtype=self.dtype, name="skip_conv")(x)
            x = InstanceNorm(self.dtype, name="skip_norm")(x)
        return nn.leaky_relu(x + y, _SLOPE)


class Doubled(nn.Module):
    """Transposed convolution of 2 x 2 x 2 with stride 2, one matrix product: (d, h, w, c) -> (2d, 2h, 2w, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], 2, 2, 2, self.width)
        kernel = self.param("kernel", _HE, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        y = x @ kernel.reshape(len(kernel), -1)
        return rearrange(y, "d h w (i j k c) -> (d i) (h j) (w k) c", i=2, j=2, k=2) + bias


class UNet3dBody(nn.Module):
    """Volume (D, H, W, c) -> features of the decoder's stages, the finest first: (D/fold, H/fold, W/fold, c), ..."""

    config: UNet3dConfig

    @nn.compact
    def __call__(self, volume: Array) -> tuple[Array, ...]:
        config, dtype, skips = self.config, self.config.dtype, []
        n = config.fold
        x = rearrange(volume.astype(dtype), "(d i) (h j) (w k) c -> d h w (i j k c)", i=n, j=n, k=n)
        x = nn.leaky_relu(ConvNorm(config.widths[0], dtype, name="stem")(x), _SLOPE)
        for stage, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                x = ResidualBlock(width, dtype, stride, name=f"down_{stage}_{i}")(x)
            skips.append(x)
        found = []
        for stage in reversed(range(len(config.widths) - 1)):
            x = Doubled(config.widths[stage], dtype, name=f"doubled_{stage}")(x)
            x = jnp.concatenate([x, skips[stage]], axis=-1)
            x = nn.leaky_relu(ConvNorm(config.widths[stage], dtype, name=f"up_{stage}")(x), _SLOPE)
            found.append(x)
        return tuple(reversed(found))


class Classifiers(nn.Module):
    """Features of the decoder's stages -> logits (classes, d, h, w) of each in float32, stage 0 at the input's size."""

    config: UNet3dConfig

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> tuple[Array, ...]:
        config, found = self.config, []
        for stage, x in enumerate(features):
            n = config.fold if stage == 0 else 1
            name = "head" if stage == 0 else f"head_{stage}"
            y = nn.Dense(n**3 * config.classes, dtype=config.dtype, name=name)(x).astype(jnp.float32)
            found.append(rearrange(y, "d h w (i j k n) -> n (d i) (h j) (w k)", i=n, j=n, k=n))
        return tuple(found)


class UNet3d(nn.Module):
    """Root module: volume (D, H, W, c) -> logits (classes, D, H, W), and those of the coarser stages."""

    config: UNet3dConfig

    def setup(self) -> None:
        self.image_encoder = UNet3dBody(self.config)
        self.mask_decoder = Classifiers(self.config)

    def encode(self, volume: Array) -> tuple[Array, ...]:
        """Volume (D, H, W, c) -> features of the decoder's stages."""
        return self.image_encoder(volume)

    def decode(self, features: tuple[Array, ...]) -> Prediction:
        """Features of the decoder's stages -> Prediction with logits (classes, D, H, W) and coarse ones."""
        finest, *coarser = self.mask_decoder(features)
        return Prediction(finest, coarse=tuple(coarser))

    def __call__(self, volume: Array) -> Prediction:
        return self.decode(self.encode(volume))
