"""Rebuild an embedding from a part of its tokens: the decoder of masked image pretraining with SAM's features (SAMI).

Tokens that were left out ask, by cross-attention, those that were seen and each other; what was seen stands as the
encoder left it.  A linear layer brings all to the channels of the embedding.

Source: Xiong et al. 2024, "EfficientSAM", section 3.2 (https://arxiv.org/abs/2312.00863).  Depth, heads and the fixed
positions (those of MAE) are our choice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.models.layers import gelu


class CrossBlock(nn.Module):
    """Cross-attention and MLP with residuals: hidden tokens (m, c), seen tokens (n, c) -> hidden tokens (m, c)."""

    heads: int

    @nn.compact
    def __call__(self, hidden: Array, seen: Array) -> Array:
        dim = hidden.shape[-1]
        norm = nn.LayerNorm(name="norm1")
        asked = norm(hidden)
        every = jnp.concatenate([norm(seen), asked])
        q = nn.Dense(dim, name="q")(asked)
        k, v = jnp.split(nn.Dense(2 * dim, name="kv")(every), 2, -1)
        q, k, v = (rearrange(x, "n (heads d) -> heads n d", heads=self.heads) for x in (q, k, v))
        weights = jax.nn.softmax(q @ k.mT * q.shape[-1] ** -0.5)
        out = rearrange(weights @ v, "heads n d -> n (heads d)")
        hidden = hidden + nn.Dense(dim, name="proj")(out)
        y = gelu(nn.Dense(4 * dim, name="fc1")(nn.LayerNorm(name="norm2")(hidden)))
        return hidden + nn.Dense(dim, name="fc2")(y)


class Reconstruction(nn.Module):
    """Seen tokens (n, c) of a map of h x w and the numbers of those and of the others -> map (h, w, features)."""

    features: int
    depth: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, tokens: Array, kept: Array, left_out: Array, grid: tuple[int, int]) -> Array:
        dim = tokens.shape[-1]
        positions = jnp.asarray(sine_positions(grid, dim))
        token = self.param("mask_token", nn.initializers.normal(0.02), (dim,))
        hidden, seen = token + positions[left_out], tokens + positions[kept]
        for i in range(self.depth):
            hidden = CrossBlock(self.heads, name=f"blocks_{i}")(hidden, seen)
        merged = (
            jnp.zeros((grid[0] * grid[1], dim), tokens.dtype).at[kept].set(tokens).at[left_out].set(hidden)
        )
        rebuilt = nn.Dense(self.features, name="head")(nn.LayerNorm(name="norm")(merged))
        return rearrange(rebuilt, "(h w) c -> h w c", h=grid[0])


def sine_positions(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Sines and cosines of rows and of columns, (h w, dim); dim is a multiple of 4 or the rest stays 0."""
    quarter = dim // 4
    frequency = 1.0 / 10000 ** (np.arange(quarter) / max(quarter, 1))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [np.outer(places, frequency) for places in (rows, columns)]
    waves = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
    return np.pad(waves, ((0, 0), (0, dim - waves.shape[1]))).astype(np.float32)


def decoder_of(features: int, dim: int) -> Reconstruction:
    """The decoder for tokens of a width: four heads where they divide it, else one."""
    return Reconstruction(features, heads=4 if dim % 4 == 0 else 1)
