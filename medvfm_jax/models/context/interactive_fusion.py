"""Transformer interactive fusion of two scales."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.scales import as_maps, fitted, two_scales
from medvfm_jax.models.context.tokens import TransformerLayer, heads_of, to_map, to_tokens
from medvfm_jax.models.context.units import ConvUnit, LastProjection
from medvfm_jax.models.interpolation import resize


class InteractiveFusion(nn.Module):
    """Each of two scales attends to a summary of the other: one map (h, w, c), or several, that one last -> (h, w, c).

    The mean over a scale is one token; it goes, projected, before the tokens of the other scale through a transformer
    layer and is dropped after it.  Both refined scales, the coarse one enlarged, are concatenated and convolved.

    Interpretation: the two branches of the original are two Swin transformers, with patches of 4 and 8 pixels; here
    they are two scales of any encoder, halved until no side exceeds ``side`` (see ``two_scales``), because the
    attention is among all positions.  The result is brought to the last map's size by bilinear interpolation.

    References:
        Lin et al. 2022 (DS-TransUNet), section III-C, https://arxiv.org/abs/2106.06716
    """

    width: int = 64
    side: int = 32
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array | Sequence[Array]) -> Array:
        h, w, c = as_maps(maps)[-1].shape
        fine, coarse = two_scales(maps, self.width, self.side, self.dtype)
        refined_fine = self._refined("fine", fine, coarse)
        refined_coarse = self._refined("coarse", coarse, fine)
        both = jnp.concatenate([refined_fine, fitted(refined_coarse, fine.shape[:2])], axis=-1)
        fused = ConvUnit(self.width, 3, dtype=self.dtype, name="fuse")(both)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(resize(fused, (h, w), "bilinear"))

    def _refined(self, name: str, of: Array, other: Array) -> Array:
        summary = to_tokens(other).mean(axis=0, keepdims=True)
        summary = nn.Dense(self.width, dtype=self.dtype, name=f"{name}_summary")(summary)
        tokens = jnp.concatenate([summary, to_tokens(of)])
        tokens = TransformerLayer(heads_of(self.width), dtype=self.dtype, name=name)(tokens)
        return to_map(tokens[1:], of.shape[:2])
