"""Transformer layers over the positions of maps: attention between sets of tokens, and the perceptron after it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import attend_in_steps
from medvfm_jax.models.layers import MlpBlock, layer_norm


class TokenAttention(nn.Module):
    """Multi-head attention of tokens (n, d) on others (m, e) -> (n, width); see ``attend_in_steps`` for its memory."""

    width: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, others: Array) -> Array:
        split = "n (heads d) -> heads n d"
        q = rearrange(nn.Dense(self.width, dtype=self.dtype, name="q")(tokens), split, heads=self.heads)
        k = rearrange(nn.Dense(self.width, dtype=self.dtype, name="k")(others), split, heads=self.heads)
        v = rearrange(nn.Dense(self.width, dtype=self.dtype, name="v")(others), split, heads=self.heads)
        out = attend_in_steps(q * q.shape[-1] ** -0.5, k, v)
        out = rearrange(out, "heads n d -> n (heads d)")
        return nn.Dense(self.width, dtype=self.dtype, name="proj")(out)


class TransformerLayer(nn.Module):
    """Self-attention and perceptron, each with layer norm before and residual around it: tokens (n, d) -> (n, d)."""

    heads: int
    ratio: int = 2  # hidden units of the perceptron per channel
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        width = tokens.shape[-1]
        x = layer_norm("norm1", 1e-6, self.dtype)(tokens)
        tokens = tokens + TokenAttention(width, self.heads, self.dtype, name="attn")(x, x)
        x = layer_norm("norm2", 1e-6, self.dtype)(tokens)
        return tokens + MlpBlock(self.ratio * width, dtype=self.dtype, name="mlp")(x)


def heads_of(width: int, most: int = 4) -> int:
    """The largest number of heads up to ``most`` that divides a width."""
    return max(heads for heads in range(1, most + 1) if width % heads == 0)


def to_tokens(x: Array) -> Array:
    """Positions of x (h, w, c) row by row -> (h w, c)."""
    return rearrange(x, "h w c -> (h w) c")


def to_map(tokens: Array, size: tuple[int, int]) -> Array:
    """Tokens (h w, c) row by row -> (h, w, c)."""
    return rearrange(tokens, "(h w) c -> h w c", h=size[0])
