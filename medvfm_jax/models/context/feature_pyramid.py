"""Feature pyramid networks: the top-down pyramid, and a neck that brings it back to one map."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.scales import as_maps, enlarge, fitted, scales
from medvfm_jax.models.context.units import LastProjection
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.layers import layer_norm


class FeaturePyramid(nn.Module):
    """Top-down pyramid: maps [(h, w, c_0), (h/2, w/2, c_1), ...], finest first -> maps of ``width`` channels.

    Lateral 1x1 convolutions, nearest-neighbour doubling from the coarser level, addition, 3x3 smoothing.
    Source: Feature Pyramid Networks (Lin et al. 2017, section 3).  Sides need not be exact halves.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        merged: list[Array] = []
        for level in reversed(range(len(maps))):
            lateral = nn.Dense(self.width, dtype=self.dtype, name=f"lateral_{level}")(maps[level])
            merged.append(lateral + enlarge(merged[-1], lateral.shape[:2]) if merged else lateral)
        return [
            Conv(self.width, (3, 3), dtype=self.dtype, name=f"smooth_{level}")(m)
            for level, m in enumerate(reversed(merged))
        ]


class FPNNeck(nn.Module):
    """Feature pyramid back on one map: one map (h, w, c), or several with that one last -> (h, w, c).

    Where levels are missing they are made, see ``scales``; ``FeaturePyramid`` merges them; the levels are summed at
    the size of the last map.

    References:
        Lin et al. 2017, section 3, https://arxiv.org/abs/1612.03144
    """

    width: int = 64
    levels: int = 3
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array | Sequence[Array]) -> Array:
        h, w, c = as_maps(maps)[-1].shape
        pyramid = FeaturePyramid(self.width, self.dtype, name="pyramid")(
            scales(maps, self.width, self.levels, self.dtype)
        )
        fused = sum(fitted(m, (h, w)) for m in pyramid)
        fused = nn.gelu(layer_norm("norm", 1e-6, self.dtype)(fused), approximate=False)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(fused)
