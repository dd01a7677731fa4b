"""Tokens of several encoder blocks put together at every position."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.scales import as_maps, region_means
from medvfm_jax.models.context.units import ConvUnit, LastProjection
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import layer_norm


class TokenAggregation(nn.Module):
    """Features of several blocks, position by position: maps (h_i, w_i, c_i), the changed one last -> (h, w, c).

    Each map is normalised, so that no block outweighs the others, and brought to the last map's size (bilinear, or
    means where it shrinks); all are concatenated and projected.

    Interpretation: MedDINOv3 gives the concatenated tokens of blocks 2, 5, 8 and 11 to its decoder; here a projection
    of them is added to the map that the decoder reads.

    References:
        Li et al. 2025 (MedDINOv3), https://arxiv.org/abs/2509.02379
    """

    width: int = 64
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array | Sequence[Array]) -> Array:
        maps = as_maps(maps)
        h, w, c = maps[-1].shape
        normed = [layer_norm(f"norm_{i}", 1e-6, self.dtype)(x) for i, x in enumerate(maps)]
        together = jnp.concatenate([_sized(x, (h, w)) for x in normed], axis=-1)
        mixed = ConvUnit(self.width, 1, dtype=self.dtype, name="mix")(together)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(mixed)


def _sized(x: Array, size: tuple[int, int]) -> Array:
    if x.shape[:2] == size:
        return x
    shrinks = x.shape[0] > size[0] or x.shape[1] > size[1]
    return region_means(x, size) if shrinks else resize(x, size, "bilinear")
