"""MISSFormer's context bridge: tokens of all scales attend to each other, and each scale is mixed on its own."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.context.mix_ffn import MixHidden
from medvfm_jax.models.context.scales import as_maps, scales
from medvfm_jax.models.context.tokens import TokenAttention, heads_of, to_map, to_tokens
from medvfm_jax.models.context.units import LastProjection
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.layers import layer_norm


class ContextBridge(nn.Module):
    """Attention over the tokens of all scales: one map (h, w, c), or several with that one last -> (h, w, c).

    ``depth`` bridge layers (``BridgeLayer``) on the scales of ``scales``; the scale of the last map's size is the
    result.

    Interpretation: scales of any encoder have one width here, where MISSFormer cuts its wider scales into more tokens
    of the narrowest width; ``depth`` is 4 there.

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
    """One layer of the bridge: maps (h_i, w_i, c), finest first -> the same shapes.

    Tokens of all scales, normalised, attend to keys and values of all scales, of which each finer one is reduced to
    about the coarsest size by a convolution whose stride is its window; then every scale goes through its own enhanced
    mix-FFN.  Both have a residual.

    only: the one scale whose result is wanted; None: all.
    """

    only: int | None = None
    ratio: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        width = maps[0].shape[-1]
        normed = [layer_norm(f"norm_{i}", 1e-6, self.dtype)(x) for i, x in enumerate(maps)]
        wanted = range(len(maps)) if self.only is None else [self.only]
        coarsest = maps[-1].shape[:2]
        reduced = [self._reduced(i, x, coarsest) for i, x in enumerate(normed)]
        keys = layer_norm("key_norm", 1e-6, self.dtype)(jnp.concatenate(reduced))
        queries = jnp.concatenate([to_tokens(normed[i]) for i in wanted])
        found = TokenAttention(width, heads_of(width), self.dtype, name="attn")(queries, keys)
        ends = np.cumsum([maps[i].shape[0] * maps[i].shape[1] for i in wanted])[:-1]
        out = []
        for i, part in zip(wanted, jnp.split(found, ends), strict=True):
            x = maps[i] + to_map(part, maps[i].shape[:2])
            mixed = layer_norm(f"ffn_norm_{i}", 1e-6, self.dtype)(x)
            mixed = MixHidden(self.ratio * width, dtype=self.dtype, name=f"ffn_{i}")(mixed)
            out.append(x + nn.Dense(width, dtype=self.dtype, name=f"fc2_{i}")(mixed))
        return out

    def _reduced(self, i: int, x: Array, size: tuple[int, int]) -> Array:
        window = max(1, min(x.shape[0] // size[0], x.shape[1] // size[1]))
        if window == 1:
            return to_tokens(x)
        pad = [(0, -side % window) for side in x.shape[:2]]
        x = jnp.pad(x, [*pad, (0, 0)])
        conv = PatchConv(x.shape[-1], (window, window), window, dtype=self.dtype, name=f"reduce_{i}")
        return to_tokens(conv(x))
