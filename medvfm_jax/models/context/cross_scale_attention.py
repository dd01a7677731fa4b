"""Attention to tokens that mix several scales."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.context.errors import MapTooSmall
from medvfm_jax.models.context.units import ConvUnit, LastProjection
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.layers import layer_norm


class CrossScaleAttention(nn.Module):
    """Every position attends to tokens that mix several scales, x (h, w, c) -> (h, w, c).

    Keys and values are a cross-scale embedding: convolutions with kernels of stride, 2*stride, 4*stride
    pixels, all at the same stride, concatenated; the smallest kernel gets half the channels, the next a
    quarter, and so on.
    Source: CrossFormer (Wang et al. 2022, section 3.1), with global attention over its few tokens in
    place of the short- and long-distance groups.  Raises MapTooSmall if the stride exceeds the map.
    """

    width: int = 64
    heads: int = 4
    stride: int = 4
    kernels: int = 3
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        if self.stride > min(h, w):
            raise MapTooSmall(f"stride {self.stride} does not fit a {h}x{w} map: use a smaller stride.")
        squeezed = ConvUnit(self.width, 1, dtype=self.dtype, name="squeeze")(x)
        embedded = []
        for i, features in enumerate(_halved(self.width, self.kernels)):
            size = self.stride * 2**i
            conv = Conv(features, (size, size), self.stride, dtype=self.dtype, name=f"scale_{size}")
            embedded.append(conv(squeezed))
        tokens = rearrange(jnp.concatenate(embedded, axis=-1), "h w c -> (h w) c")
        tokens = layer_norm("norm", 1e-6, self.dtype)(tokens)
        queries = rearrange(squeezed, "h w c -> (h w) c")
        split = "n (heads d) -> heads n d"
        q = rearrange(nn.Dense(self.width, dtype=self.dtype, name="q")(queries), split, heads=self.heads)
        k = rearrange(nn.Dense(self.width, dtype=self.dtype, name="k")(tokens), split, heads=self.heads)
        v = rearrange(nn.Dense(self.width, dtype=self.dtype, name="v")(tokens), split, heads=self.heads)
        logits = jnp.einsum("and,amd->anm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        out = jnp.einsum("anm,amd->and", jax.nn.softmax(logits).astype(v.dtype), v)
        out = rearrange(out, "heads (h w) d -> h w (heads d)", h=h)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(out)


def _halved(width: int, parts: int) -> list[int]:
    """Split ``width`` into 1/2, 1/4, ...; the last two parts are equal."""
    sizes = [width // 2 ** (i + 1) for i in range(parts - 1)]
    return [*sizes, width - sum(sizes)]
