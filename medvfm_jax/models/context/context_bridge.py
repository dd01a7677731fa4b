"""MISSFormer's context bridge: tokens of all scales attend to each other, and each scale is mixed on its own."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.models.context.mix_ffn import MixHidden
from medvfm_jax.models.context.scales import as_maps, scales
from medvfm_jax.models.context.tokens import TokenAttention, heads_of
from medvfm_jax.models.context.units import LastProjection
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.layers import layer_norm


class ContextBridge(nn.Module):
    """Attention over the tokens of all scales: one map (h, w, c), or several with that one last -> (h, w, c).

    ``depth`` bridge layers (``BridgeLayer``) on the scales of ``scales``; the scale of the last map's size is the
    result.

    Interpretation: scales of any encoder have one width here, where MISSFormer (``models.missformer``) cuts its wider
    scales into more tokens of the narrowest width; ``depth`` is 4 there.

    References:
        Huang et al. 2021 (MISSFormer), section 3.3, https://arxiv.org/abs/2109.07162
    """

    width: int = 64
    levels: int = 4
    depth: int = 2
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array | Sequence[Array]) -> Array:
        h, w, c = as_maps(maps)[-1].shape
        pyramid = scales(maps, self.width, self.levels, self.dtype)
        place = [m.shape[:2] for m in pyramid].index((h, w))
        for layer in range(self.depth):
            only = place if layer == self.depth - 1 else None
            pyramid = BridgeLayer(only, dtype=self.dtype, name=f"layer_{layer}")(pyramid)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(pyramid[0])


class BridgeLayer(nn.Module):
    """One layer of the bridge: maps (h_i, w_i, c_i), finest and narrowest first -> the same shapes.

    A place of a map that is k times as wide as the narrowest is k tokens of that width.  Tokens of all scales,
    normalised, attend to keys and values of all scales, of which each finer one is reduced to about the coarsest size
    by a convolution whose stride is its window; then, normalised again, every scale goes through its own enhanced
    mix-FFN.  Both have a residual.

    only: the one scale whose result is wanted; None: all.  ratio: hidden units of a mix-FFN per channel.  heads: at
    most.
    """

    only: int | None = None
    ratio: int = 2
    heads: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        width, coarsest = maps[0].shape[-1], maps[-1].shape[:2]
        normed = self._normed("norm", maps, width)
        reduced = [_narrow(self._reduced(i, x, coarsest), width) for i, x in enumerate(normed)]
        keys = layer_norm("key_norm", 1e-6, self.dtype)(jnp.concatenate(reduced))
        wanted = range(len(maps)) if self.only is None else [self.only]
        queries = jnp.concatenate([_narrow(normed[i], width) for i in wanted])
        heads = heads_of(width, self.heads)
        found = TokenAttention(width, heads, self.dtype, name="attn")(queries, keys)
        mapped = [maps[i] for i in wanted]
        mapped = [x + y for x, y in zip(mapped, _as_maps(found, mapped), strict=True)]
        out = []
        for i, x, y in zip(wanted, mapped, self._normed("ffn_norm", mapped, width), strict=True):
            mixed = MixHidden(self.ratio * x.shape[-1], dtype=self.dtype, name=f"ffn_{i}")(y)
            out.append(x + nn.Dense(x.shape[-1], dtype=self.dtype, name=f"fc2_{i}")(mixed))
        return out

    def _normed(self, name: str, maps: Sequence[Array], width: int) -> list[Array]:
        """Maps whose tokens, of all of them, went through one layer norm."""
        tokens = jnp.concatenate([_narrow(x, width) for x in maps])
        return _as_maps(layer_norm(name, 1e-6, self.dtype)(tokens), maps)

    def _reduced(self, i: int, x: Array, size: tuple[int, int]) -> Array:
        window = max(1, min(x.shape[0] // size[0], x.shape[1] // size[1]))
        if window == 1:
            return x
        pad = [(0, -side % window) for side in x.shape[:2]]
        x = jnp.pad(x, [*pad, (0, 0)])
        return PatchConv(x.shape[-1], (window, window), window, dtype=self.dtype, name=f"reduce_{i}")(x)


def _narrow(x: Array, width: int) -> Array:
    """Map (h, w, k width) -> tokens (h w k, width)."""
    return rearrange(x, "h w (k c) -> (h w k) c", c=width)


def _as_maps(tokens: Array, maps: Sequence[Array]) -> list[Array]:
    """The inverse of ``_narrow`` for maps one after the other, of the shapes of ``maps``."""
    ends = np.cumsum([x.size // tokens.shape[-1] for x in maps])[:-1]
    return [part.reshape(x.shape) for part, x in zip(jnp.split(tokens, ends), maps, strict=True)]
