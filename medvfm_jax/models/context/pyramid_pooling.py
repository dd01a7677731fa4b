"""The pyramid pooling module."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.errors import MapTooSmall
from medvfm_jax.models.context.scales import region_means
from medvfm_jax.models.context.units import ConvUnit, LastProjection
from medvfm_jax.models.interpolation import resize


class PyramidPooling(nn.Module):
    """Pyramid pooling module, x (h, w, c) -> (h, w, c).

    Means over 1x1, 2x2, 3x3 and 6x6 regions, each projected, resized back and concatenated with x.
    Source: PSPNet (Zhao et al. 2017, section 3.2).  Raises MapTooSmall if a grid exceeds the map.
    """

    width: int = 64
    grids: Sequence[int] = (1, 2, 3, 6)
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        branches = [x.astype(self.dtype)]
        for grid in self.grids:
            if grid > min(h, w):
                raise MapTooSmall(f"a {grid}x{grid} grid does not fit a {h}x{w} map: use smaller grids.")
            pooled = ConvUnit(self.width, 1, dtype=self.dtype, name=f"grid_{grid}")(region_means(x, grid))
            branches.append(resize(pooled, (h, w), "bilinear"))
        fused = ConvUnit(self.width, 3, dtype=self.dtype, name="fuse")(jnp.concatenate(branches, axis=-1))
        return LastProjection(c, self.zero_init, self.dtype, name="last")(fused)
