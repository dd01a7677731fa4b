"""The ResNet in front of a hybrid ViT: kernels of weight 0 and variance 1, and group norms.

Image (S, S, 3) -> maps at 1/2, 1/4 and 1/8 of the side, which a decoder joins, and the map at 1/16 for the tokens.  The
pooling behind the first convolution has no padding, so the map at 1/4 has one row and column less than its name says;
the decoder gets it with zeros there, the next stage as it is.

Source: Kolesnikov et al. 2020, "Big Transfer" (arXiv 1912.11370), for norms and kernels; Qiao et al. 2019, "Weight
Standardization" (arXiv 1903.10520); Beckschen/TransUNet (Apache-2.0), ``networks/vit_seg_modeling_resnet_skip.py``, for
the order of layers, which is that of ResNet v1, and for the epsilons.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from medvfm_jax.models.convolution_gradient import convolve
from medvfm_jax.models.hiformer.resnet import largest_of_nine

KERNEL_EPSILON = 1e-5  # added to the variance of a kernel


@dataclass(frozen=True)
class HybridConfig:
    """Static shape: stage i has ``units[i]`` units of ``4 * base * 2**i`` channels; groups: of the norms."""

    units: tuple[int, ...] = (3, 4, 9)
    base: int = 64
    groups: int = 32
    dtype: Any = jnp.float32

    def width(self, stage: int) -> int:
        """Channels of a stage's output."""
        return 4 * self.base * 2**stage


class StdConv(nn.Module):
    """Convolution without bias whose kernel is standardised, zero padding, x (h, w, c) -> (h/s, w/s, features).

    Every output channel's weights have mean 0 and variance 1.  No ``nn.Conv``, because an update of low rank that is
    added to its output is none of its kernel.

    References:
        Qiao et al. 2019, equation 5, https://arxiv.org/abs/1903.10520
    """

    features: int
    kernel: int = 1
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        centred = kernel - kernel.mean((0, 1, 2))
        kernel = centred * jax.lax.rsqrt(jnp.square(centred).mean((0, 1, 2)) + KERNEL_EPSILON)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        if self.kernel == 1:
            return x[:: self.stride, :: self.stride] @ kernel[0, 0]
        pad, strides = (
            (self.kernel // 2,) * 2,
            (self.stride,) * 2,
        )  # both sides: "SAME" pads one with stride 2
        return convolve(x[None], kernel, strides, (pad, pad))[0]


class Unit(nn.Module):
    """Bottleneck of three convolutions beside a short cut: x (h, w, c) -> (h/s, w/s, features)."""

    features: int
    groups: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(i: int, features: int, kernel: int, stride: int, x: Array) -> Array:
            x = StdConv(features, kernel, stride, self.dtype, name=f"conv{i}")(x)
            return group_norm(f"gn{i}", self.groups, 1e-6, self.dtype)(x)

        inner = self.features // 4
        y = nn.relu(conv(1, inner, 1, 1, x))
        y = nn.relu(conv(2, inner, 3, self.stride, y))
        y = conv(3, self.features, 1, 1, y)
        if x.shape != y.shape:
            x = StdConv(self.features, 1, self.stride, self.dtype, name="conv_proj")(x)
            x = group_norm("gn_proj", self.features, 1e-5, self.dtype)(x)
        return nn.relu(x + y)


class HybridResNet(nn.Module):
    """Image (S, S, 3) -> [(S/2, S/2, base), (S/4, S/4, width 0), (S/8, S/8, width 1), ...], S a multiple of 16."""

    config: HybridConfig

    @nn.compact
    def __call__(self, image: Array) -> list[Array]:
        config, dtype = self.config, self.config.dtype
        x = StdConv(config.base, 7, 2, dtype, name="conv_root")(image.astype(dtype))
        x = nn.relu(group_norm("gn_root", config.groups, 1e-6, dtype)(x))
        maps, x = [x], largest_of_nine(x, padding=0)
        for stage, count in enumerate(config.units):
            for i in range(count):
                shape = (config.width(stage), config.groups, 2 if stage and not i else 1, dtype)
                x = Unit(*shape, name=f"block{stage + 1}_unit{i + 1}")(x)
            lacking = (0, image.shape[0] // 2 ** (stage + 2) - x.shape[0])
            maps.append(jnp.pad(x, (lacking, lacking, (0, 0))))
        return maps


def group_norm(name: str, groups: int, epsilon: float, dtype: Any = jnp.float32) -> nn.GroupNorm:
    """Group norm over one image (h, w, c) of that name."""
    return nn.GroupNorm(
        groups,
        epsilon=epsilon,
        reduction_axes=(-3, -2, -1),
        use_fast_variance=False,  # one pass loses digits where the mean is large
        dtype=dtype,
        name=name,
    )
