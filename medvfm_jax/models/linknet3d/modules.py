"""3-D LinkNet with a residual encoder, as deepbet's networks have it.

A convolution of 7 x 7 x 7 and a maximum quarter the side; of four stages of two residual blocks the last three halve it
again.  Every stage of the decoder narrows to a quarter of its channels, doubles the side and widens again; what the
encoder had at that size is added.  Instance norms have no parameters, so the scale of the intensities does not matter,
but at the borders.

Source: Chaurasia and Culurciello 2017, "LinkNet" (arXiv 1707.03718), whose blocks these are in 3-D; Fisch et al. 2024,
"deepbet" (arXiv 2308.07003).  Layers and their order are those of the networks in its package (MIT licence).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

from medvfm_jax.models.convolution_3d import (
    conv3d,
    conv3d_doubling,
    conv3d_strided,
    max_pool3d_halving,
)
from medvfm_jax.models.encoder_decoder import EncoderDecoder

_HE = nn.initializers.he_normal()
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class LinkNet3dConfig:
    """Static shape of a 3-D LinkNet; stage i of the encoder has ``widths[i]`` channels at 1/(4 2**i) of the side."""

    classes: int = 2
    widths: tuple[int, ...] = (16, 32, 64, 128)
    blocks: int = 2
    head: int = 8
    dtype: Any = jnp.float32

    @property
    def multiple(self) -> int:
        """What every side of the input has to be a multiple of."""
        return 4 * 2 ** (len(self.widths) - 1)


def instance_norm(x: Array) -> Array:
    """Each channel of one volume to mean 0 and variance 1: (d, h, w, c) -> the same, in the type it came in."""
    wide = x.astype(jnp.float32)
    away = wide - wide.mean((0, 1, 2))
    return (away * lax.rsqrt(jnp.square(away).mean((0, 1, 2)) + NORM_EPSILON)).astype(x.dtype)


class Kernel(nn.Module):
    """Parameters of a convolution and the function that it is: x (d, h, w, c) -> what ``how`` gives.

    how: "same", "halved" (stride 2) or "doubled" (transposed, stride 2).
    """

    width: int
    dtype: Any
    side: int = 3
    how: str = "same"
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _HE, (*(self.side,) * 3, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,)) if self.bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = {"same": conv3d, "halved": conv3d_strided, "doubled": conv3d_doubling}[self.how](x, kernel)
        return y if bias is None else y + bias


class Pointwise(nn.Module):
    """Each voxel's channels to others, then instance norm: x (d, h, w, c) -> (d, h, w, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.Dense(self.width, use_bias=False, kernel_init=_HE, dtype=self.dtype, name="conv")(x)
        return instance_norm(y)


class ResidualBlock(nn.Module):
    """Two convolutions with a residual around them: x (d, h, w, c) -> (d/s, h/s, w/s, width)."""

    width: int
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        how = "halved" if self.stride == 2 else "same"
        y = nn.relu(instance_norm(Kernel(self.width, self.dtype, how=how, name="conv1")(x)))
        y = instance_norm(Kernel(self.width, self.dtype, name="conv2")(y))
        if self.stride == 2 or x.shape[-1] != self.width:
            n = self.stride
            x = Pointwise(self.width, self.dtype, name="downsample")(x[::n, ::n, ::n])
        return nn.relu(y + x)


class UpBlock(nn.Module):
    """x (d, h, w, c) -> (2d, 2h, 2w, width), or at the same sides: narrowed to c / 4, convolved, widened."""

    width: int
    dtype: Any
    how: str = "doubled"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        narrow = x.shape[-1] // 4
        x = nn.relu(Pointwise(narrow, self.dtype, name="conv1")(x))
        x = nn.relu(instance_norm(Kernel(narrow, self.dtype, how=self.how, name="tp_conv")(x)))
        return nn.relu(Pointwise(self.width, self.dtype, name="conv2")(x))


class LinkNet3dEncoder(nn.Module):
    """Volume (D, H, W, c) -> features at a quarter of the sides, before and after stage 0, then of each other stage."""

    config: LinkNet3dConfig

    @nn.compact
    def __call__(self, volume: Array) -> tuple[Array, ...]:
        config, dtype = self.config, self.config.dtype
        x = Kernel(config.widths[0], dtype, 7, "halved", name="init")(volume)
        x = max_pool3d_halving(nn.relu(instance_norm(x)))
        found = [x]
        for stage, width in enumerate(config.widths):
            for i in range(config.blocks):
                stride = 2 if stage and not i else 1
                x = ResidualBlock(width, dtype, stride, name=f"down{stage}_block{i + 1}")(x)
            found.append(x)
        return tuple(found)


class LinkNet3dDecoder(nn.Module):
    """Features of the encoder's stages -> logits (classes, D, H, W) in float32."""

    config: LinkNet3dConfig

    @nn.compact
    def __call__(self, features: tuple[Array, ...]) -> Array:
        config, dtype = self.config, self.config.dtype
        *skips, x = features
        for i, skip in enumerate(reversed(skips)):
            how = "doubled" if i < len(skips) - 1 else "same"
            x = UpBlock(skip.shape[-1], dtype, how, name=f"up{i}")(x) + skip
        x = Kernel(config.head, dtype, how="doubled", bias=True, name="tp_conv1")(x)
        x = nn.relu(instance_norm(x))
        x = nn.relu(instance_norm(Kernel(config.head, dtype, bias=True, name="conv")(x)))
        y = nn.Dense(8 * config.classes, use_bias=False, dtype=dtype, name="tp_conv2")(x)
        bias = self.param("bias", nn.initializers.zeros, (config.classes,))
        y = rearrange(y, "d h w (i j k n) -> n (d i) (h j) (w k)", i=2, j=2, k=2)
        return y.astype(jnp.float32) + bias[:, None, None, None]


class LinkNet3d(EncoderDecoder):
    """Root module: volume (D, H, W, c) -> logits (classes, D, H, W)."""

    config: LinkNet3dConfig

    def setup(self) -> None:
        self.image_encoder = LinkNet3dEncoder(self.config)
        self.mask_decoder = LinkNet3dDecoder(self.config)
