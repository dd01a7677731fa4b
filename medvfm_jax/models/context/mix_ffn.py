"""MISSFormer's enhanced mix-FFN: a perceptron over positions with a depthwise convolution and skips inside."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.units import LastProjection
from medvfm_jax.models.convolution import DepthwiseConv
from medvfm_jax.models.layers import gelu, layer_norm


class MixHidden(nn.Module):
    """The hidden part of the enhanced mix-FFN, x (h, w, c) -> (h, w, hidden).

    u = x W; y_1 = LN(conv(u) + u); y_i = LN(u + y_{i-1}) up to i = ``steps``; the result is GELU(y).  conv is a
    depthwise 3x3 convolution.

    References:
        Huang et al. 2021 (MISSFormer), section 3.2, https://arxiv.org/abs/2109.07162
    """

    hidden: int
    steps: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        u = nn.Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        convolved = DepthwiseConv(
            self.hidden, (3, 3), 1, feature_group_count=self.hidden, dtype=self.dtype, name="conv"
        )(u)
        y = layer_norm("norm1", 1e-6, self.dtype)(convolved + u)
        for step in range(1, self.steps):
            y = layer_norm(f"norm{step + 1}", 1e-6, self.dtype)(u + y)
        return gelu(y)


class MixFFN(nn.Module):
    """Enhanced mix-FFN as a block of its own, x (h, w, c) -> (h, w, c); its skip is the block's.

    A norm, ``MixHidden``, and the projection back, which starts at zero.  ``width`` is the hidden one.

    References:
        Huang et al. 2021 (MISSFormer), section 3.2, https://arxiv.org/abs/2109.07162
    """

    width: int = 64
    steps: int = 1
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        normed = layer_norm("norm", 1e-6, self.dtype)(x)
        hidden = MixHidden(self.width, self.steps, self.dtype, name="hidden")(normed)
        return LastProjection(x.shape[-1], self.zero_init, self.dtype, name="last")(hidden)
