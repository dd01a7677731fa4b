"""Double-level fusion: the class tokens of the finest and the coarsest scale look at the other scale."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.scales import as_maps, fitted, two_scales
from medvfm_jax.models.context.tokens import TokenAttention, TransformerLayer, heads_of, to_map, to_tokens
from medvfm_jax.models.context.units import ConvUnit, LastProjection
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import layer_norm


class DoubleLevelFusion(nn.Module):
    """Cross-attention between two levels by class tokens: one map, or several, that one last -> (h, w, c).

    A level's class token is the mean of its normalised tokens.  It is the one query of a cross-attention whose keys
    and values are itself and the tokens of the other level; a transformer layer then spreads what it found over its
    own level.  Both levels, the coarse one enlarged, are added up and convolved.

    Interpretation: the exchange comes before the transformer layer, so that no position misses it, and the layer is
    one for each level (HiFormer-B: none, one or two); levels are halved until no side exceeds ``side``, see
    ``two_scales``, and the result is brought to the last map's size by bilinear interpolation.

    References:
        Heidari et al. 2023 (HiFormer), section 3.2, https://arxiv.org/abs/2207.08518; cross-attention by class tokens:
        Chen et al. 2021 (CrossViT), https://arxiv.org/abs/2103.14899
    """

    width: int = 64
    side: int = 32
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array | Sequence[Array]) -> Array:
        h, w, c = as_maps(maps)[-1].shape
        fine, coarse = two_scales(maps, self.width, self.side, self.dtype)
        tokens = {"fine": to_tokens(fine), "coarse": to_tokens(coarse)}
        classes = {
            name: layer_norm(f"{name}_norm", 1e-6, self.dtype)(x).mean(axis=0, keepdims=True)
            for name, x in tokens.items()
        }
        fused_fine = to_map(self._exchanged("fine", classes["fine"], tokens, "coarse"), fine.shape[:2])
        fused_coarse = to_map(self._exchanged("coarse", classes["coarse"], tokens, "fine"), coarse.shape[:2])
        both = fused_fine + fitted(fused_coarse, fine.shape[:2])
        fused = ConvUnit(self.width, 3, dtype=self.dtype, name="fuse")(both)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(resize(fused, (h, w), "bilinear"))

    def _exchanged(self, name: str, of_class: Array, tokens: dict[str, Array], other: str) -> Array:
        heads = heads_of(self.width)
        seen = jnp.concatenate([of_class, tokens[other]])
        seen = layer_norm(f"{name}_cross_norm", 1e-6, self.dtype)(seen)
        found = TokenAttention(self.width, heads, self.dtype, name=f"{name}_cross")(seen[:1], seen)
        own = jnp.concatenate([of_class + found, tokens[name]])
        return TransformerLayer(heads, dtype=self.dtype, name=name)(own)[1:]
