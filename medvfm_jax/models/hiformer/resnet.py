"""The first three stages of a ResNet: image (S, S, 3) -> maps at 1/4, 1/8 and 1/16 of the side.

Normalisation is over one image, as elsewhere in networks that are trained from scratch here: un-batched calls,
``vmap`` and training agree.  It has the scale and the bias of the batch norm that it takes the place of.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385); strides of a bottleneck lie
in its 3x3 convolution, as in torchvision.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv

_HE = nn.initializers.he_normal()


@dataclass(frozen=True)
class ResNetConfig:
    """Static shape: stage i has ``base * 2**i`` channels, four times as many with bottlenecks."""

    blocks: tuple[int, ...] = (3, 4, 6)
    base: int = 64
    bottleneck: bool = False
    dtype: Any = jnp.float32

    def width(self, stage: int) -> int:
        """Channels of a stage's output."""
        return self.base * 2**stage * (4 if self.bottleneck else 1)


class ConvNorm(nn.Module):
    """Convolution without bias and normalisation over one image, x (h, w, c) -> (h/s, w/s, features)."""

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, pad = (self.kernel,) * 2, (self.kernel // 2,) * 2  # both sides: "SAME" pads one with stride 2
        options = {"use_bias": False, "kernel_init": _HE, "dtype": self.dtype}
        x = Conv(self.features, size, self.stride, (pad, pad), **options, name="conv")(x)
        return nn.GroupNorm(
            num_groups=None,
            group_size=1,
            epsilon=1e-5,
            reduction_axes=(-3, -2, -1),
            use_fast_variance=False,  # one pass loses digits where the mean is large
            dtype=self.dtype,
            name="norm",
        )(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or three with a bottleneck, beside a short cut: x (h, w, c) -> (h/s, w/s, features)."""

    features: int
    stride: int = 1
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def conv(name: str, features: int, kernel: int, stride: int = 1) -> ConvNorm:
            return ConvNorm(features, kernel, stride, self.dtype, name=name)

        if self.bottleneck:
            inner = self.features // 4
            y = nn.relu(conv("conv_0", inner, 1)(x))
            y = nn.relu(conv("conv_1", inner, 3, self.stride)(y))
            y = conv("conv_2", self.features, 1)(y)
        else:
            y = nn.relu(conv("conv_0", self.features, 3, self.stride)(x))
            y = conv("conv_1", self.features, 3)(y)
        if x.shape != y.shape:
            x = conv("short_cut", self.features, 1, self.stride)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Image (S, S, 3) -> [(S/4, S/4, width 0), (S/8, S/8, width 1), ...]."""

    config: ResNetConfig

    @nn.compact
    def __call__(self, image: Array) -> list[Array]:
        config, maps = self.config, []
        x = image.astype(config.dtype)
        x = largest_of_nine(nn.relu(ConvNorm(config.base, 7, 2, config.dtype, name="stem")(x)))
        for stage, count in enumerate(config.blocks):
            for i in range(count):
                stride = 2 if stage and not i else 1
                shape = (config.width(stage), stride, config.bottleneck, config.dtype)
                x = ResidualBlock(*shape, name=f"stage_{stage}_block_{i}")(x)
            maps.append(x)
        return maps


def largest_of_nine(x: Array, padding: int = 1) -> Array:
    """Largest of every 3 x 3 pixels around every second one, x (h, w, c), even sides -> (h/2, w/2, c).

    padding: 0 leaves out the windows that reach beyond the map, which are those of one row and column.
    """
    h, w = (side - 2 * (1 - padding) for side in x.shape[:2])
    padded = jnp.pad(x, ((padding,) * 2, (padding,) * 2, (0, 0)), constant_values=-jnp.inf)
    # Slices rather than a windowed maximum, whose gradient is slow on CPU.
    parts = [padded[i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)]
    return jax.tree.reduce(jnp.maximum, parts)
