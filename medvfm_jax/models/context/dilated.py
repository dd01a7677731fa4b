"""A stack of dilated convolutions."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.units import ConvUnit, LastProjection


class DilatedStack(nn.Module):
    """3x3 convolutions with growing dilation one after the other, x (h, w, c) -> (h, w, c).

    A position sees ``1 + 2 * sum(rates)`` positions in each direction without a reduction of the map: 67 with the
    default rates, the published ones.

    Interpretation: a 1x1 convolution to ``width`` channels comes before them, and the last convolution of the
    original, 1x1, is the one that starts at zero.

    References:
        Yu and Koltun 2016, section 3, table 1, https://arxiv.org/abs/1511.07122
    """

    width: int = 64
    rates: Sequence[int] = (1, 1, 2, 4, 8, 16, 1)
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        x = ConvUnit(self.width, 1, dtype=self.dtype, name="squeeze")(x)
        for i, rate in enumerate(self.rates):
            x = ConvUnit(self.width, 3, rate, self.dtype, name=f"conv_{i}")(x)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(x)
