"""Atrous spatial pyramid pooling."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import reduce, repeat
from jax import Array

from medvfm_jax.models.context.units import ConvUnit, LastProjection


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, x (h, w, c) -> (h, w, c).

    A 1x1 convolution, one dilated 3x3 convolution per rate and the image's mean, side by side, then fused.
    The default rates are those for an output stride of 16.
    Source: DeepLabv3 (Chen et al. 2017, section 3.3).
    """

    width: int = 64
    rates: Sequence[int] = (6, 12, 18)
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        branches = [ConvUnit(self.width, 1, dtype=self.dtype, name="pointwise")(x)]
        branches += [ConvUnit(self.width, 3, rate, self.dtype, name=f"rate_{rate}")(x) for rate in self.rates]
        mean = reduce(x, "h w c -> 1 1 c", "mean")
        mean = ConvUnit(self.width, 1, dtype=self.dtype, name="image_pool")(mean)
        branches.append(repeat(mean, "1 1 c -> h w c", h=h, w=w))
        fused = ConvUnit(self.width, 1, dtype=self.dtype, name="fuse")(jnp.concatenate(branches, axis=-1))
        return LastProjection(c, self.zero_init, self.dtype, name="last")(fused)
