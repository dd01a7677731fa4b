"""BiFPN: a pyramid merged downwards and upwards, with learned weights for what is merged."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.scales import as_maps, enlarge, fitted, region_maxima, region_means, scales
from medvfm_jax.models.context.units import LastProjection
from medvfm_jax.models.convolution import DepthwiseConv
from medvfm_jax.models.layers import layer_norm

EPSILON = 1e-4  # of the fast normalised fusion


class BiFPN(nn.Module):
    """Bidirectional feature pyramid: one map (h, w, c), or several with that one last -> (h, w, c).

    Where levels are missing they are made, see ``scales``.  ``repeats`` layers follow each other, and the level of the
    last map's size is the result.  A node adds its inputs with ``fused_weights`` and then applies SiLU, a depthwise
    separable 3x3 convolution and a norm.  Coarser maps are doubled by nearest neighbour, finer ones halved by maxima
    over 3x3 windows.

    Interpretation: layer norm stands for batch norm, and sizes that are no halves of each other are met by means.

    References:
        Tan et al. 2020 (EfficientDet), section 3, https://arxiv.org/abs/1911.09070
    """

    width: int = 64
    levels: int = 4
    repeats: int = 2
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array | Sequence[Array]) -> Array:
        h, w, c = as_maps(maps)[-1].shape
        pyramid = scales(maps, self.width, self.levels, self.dtype)
        place = [m.shape[:2] for m in pyramid].index((h, w))
        for repeat in range(self.repeats):
            last = repeat == self.repeats - 1
            # Of the last layer nothing is computed that the result does not read.
            pyramid = BiFPNLayer(self.width, place if last else None, self.dtype, name=f"layer_{repeat}")(
                pyramid
            )
        return LastProjection(c, self.zero_init, self.dtype, name="last")(pyramid[-1])


class BiFPNLayer(nn.Module):
    """One way down and one way up: maps (h_i, w_i, width), finest first -> the same shapes.

    upto: the level to stop at on the way up; None computes all.
    """

    width: int
    upto: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        coarsest = len(maps) - 1
        upto = coarsest if self.upto is None else self.upto
        down = {coarsest: maps[coarsest]}
        for level in reversed(range(coarsest)):
            inputs = [maps[level], fitted(down[level + 1], maps[level].shape[:2])]
            down[level] = self._node(f"down_{level}", inputs)
        out = [down[0]]
        for level in range(1, upto + 1):
            below = _shrunk(out[-1], maps[level].shape[:2])
            between = [down[level]] if level < coarsest else []
            out.append(self._node(f"up_{level}", [maps[level], *between, below]))
        return out

    def _node(self, name: str, inputs: list[Array]) -> Array:
        raw = self.param(f"{name}_weights", nn.initializers.ones, (len(inputs),))
        weights = fused_weights(raw).astype(self.dtype)
        x = nn.silu(sum(weight * x for weight, x in zip(weights, inputs, strict=True)))
        x = DepthwiseConv(
            self.width, (3, 3), 1, feature_group_count=self.width, use_bias=False, dtype=self.dtype,
            name=f"{name}_depthwise",
        )(x)  # fmt: skip
        x = nn.Dense(self.width, dtype=self.dtype, name=f"{name}_pointwise")(x)
        return layer_norm(f"{name}_norm", 1e-6, self.dtype)(x)


def fused_weights(raw: Array) -> Array:
    """Fast normalised fusion: raw (n,) -> max(raw, 0) / (sum of those + EPSILON)."""
    positive = jax.nn.relu(raw)
    return positive / (positive.sum() + EPSILON)


def _shrunk(x: Array, size: tuple[int, int]) -> Array:
    halves = region_maxima(x)
    if halves.shape[:2] == size:
        return halves
    return enlarge(x, size) if x.shape[0] < size[0] else region_means(x, size)
