"""The layers that context blocks are made of."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.layers import layer_norm


class ConvUnit(nn.Module):
    """Convolution, layer normalisation over channels, GELU: x (h, w, c) -> (h, w, width)."""

    width: int
    kernel_size: int = 3
    rate: int = 1  # dilation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, rate = (self.kernel_size,) * 2, (self.rate,) * 2
        x = Conv(self.width, size, kernel_dilation=rate, use_bias=False, dtype=self.dtype, name="conv")(x)
        return nn.gelu(layer_norm("norm", 1e-6, self.dtype)(x), approximate=False)


class LastProjection(nn.Module):
    """1x1 convolution to ``features`` channels, zero at the start if asked: x (h, w, c) -> (h, w, out)."""

    features: int
    zero_init: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="proj")(x)
