"""The second stage of H-SAM's decoder: SAM's masks as a prior for attention, and a finer map.

Where the release fixes shapes for images of 224 and 512 pixels, the shapes here follow from grid and classes.

Source: Cheng et al. 2024, "Unleashing the Potential of SAM for Medical Adaptation via Hierarchical Decoding" (arXiv
2403.18271), section 3; the release's ``mask_decoder_512.py`` and ``transformer.py``.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax import Array

from medvfm_jax.models.attention import dot_logits
from medvfm_jax.models.context.scales import region_means
from medvfm_jax.models.convolution import UpConv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import MlpBlock, ReluMlp, embedding_table, gelu, layer_norm
from medvfm_jax.models.sam.mask_decoder import NORM_EPSILON, CrossAttention, Stage, masks_of

FEATURE_SIDE = 16  # of the maps on which classes attend to each other, 14 in the release for 224 pixels


class PriorAttention(nn.Module):
    """Attention whose weights are multiplied by a prior: q (n, c), k, v (m, c), prior (n, m) -> (n, c).

    The products are not normalised again, so that where the prior is small little comes through.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array, prior: Array) -> Array:
        dim = q.shape[-1]

        def project(x: Array, name: str) -> Array:
            x = nn.Dense(dim, dtype=self.dtype, name=name)(x)
            return rearrange(x, "n (heads d) -> heads n d", heads=self.heads)

        q, k, v = project(q, "q_proj"), project(k, "k_proj"), project(v, "v_proj")
        weights = jax.nn.softmax(dot_logits(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k)) * prior
        out = rearrange(jnp.matmul(weights.astype(v.dtype), v), "heads n d -> n (heads d)")
        return nn.Dense(dim, dtype=self.dtype, name="out_proj")(out)


class PriorBlock(nn.Module):
    """SAM's two-way block with a prior on both cross-attentions: tokens (M, c), image (n, c), prior (M, n) -> both."""

    heads: int
    hidden: int
    first: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, token_pe: Array, image_pe: Array, prior: Array
    ) -> tuple[Array, Array]:
        def norm(name: str, x: Array) -> Array:
            return layer_norm(name, NORM_EPSILON, self.dtype)(x)

        to_image = PriorAttention(self.heads, self.dtype, name="cross_attn_token_to_image")
        tokens = norm("norm2", tokens + to_image(tokens + token_pe, image + image_pe, image, prior))
        attention = CrossAttention(self.heads, tokens.shape[-1], self.dtype, name="self_attn")
        if self.first:
            tokens = attention(tokens[None], tokens[None], tokens[None])[0]
        else:
            q = tokens + token_pe
            tokens = tokens + attention(q[None], q[None], tokens[None])[0]
        tokens = norm("norm1", tokens)
        mlp = MlpBlock(self.hidden, nn.relu, self.dtype, name="mlp")
        tokens = norm("norm3", tokens + mlp(tokens))
        to_tokens = PriorAttention(self.heads, self.dtype, name="cross_attn_image_to_token")
        image = norm("norm4", image + to_tokens(image + image_pe, tokens + token_pe, tokens, prior.T))
        return tokens, image


class ClassGate(nn.Module):
    """Where the classes' maps (M, h, w) say something is: a weight (h, w, 1) in (0, 1) for each cell.

    The maps are seen at ``FEATURE_SIDE`` cells a side; classes attend to each other twice.
    """

    hidden: int = 2048
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array) -> Array:
        size = maps.shape[1:]
        side = min(FEATURE_SIDE, *size)
        x = rearrange(region_means(rearrange(maps, "m h w -> h w m"), side), "h w m -> m (h w)")
        for i in range(2):
            attention = CrossAttention(math.gcd(8, side * side), side * side, self.dtype, name=f"attn_{i}")
            x = attention(x[None], x[None], x[None])[0]
            if i:
                x = x + MlpBlock(self.hidden, nn.relu, self.dtype, name="mlp")(x)
            x = layer_norm(f"norm_{i}", NORM_EPSILON, self.dtype)(x)
        gate = nn.sigmoid(nn.Dense(1, dtype=self.dtype, name="select")(x.T))
        return resize(rearrange(gate, "(h w) one -> h w one", h=side), size)


class SecondDecoder(nn.Module):
    """Embedding (h, w, c), first logits (M, 4h, 4w) and what the first decoder saw -> logits (M, s h, s w).

    s is 2 ** (2 + doublings): the pixels of the first stage are joined and doubled further.
    """

    heads: int = 8
    hidden: int = 2048
    doublings: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array, image_pe: Array, first: Array, stage: Stage) -> Array:
        h, w, dim = embedding.shape
        dtype, classes = self.dtype, first.shape[0]
        maps = jnp.einsum("mc,hwc->mhw", stage.tokens[0], stage.image[0])
        image = embedding * (1 + ClassGate(self.hidden, dtype, name="gate")(maps.astype(dtype)))
        prior = jax.nn.softmax(reduce(first, "m (h i) (w j) -> m (h w)", "mean", h=h, w=w), axis=0)
        image, positions = (rearrange(x.astype(dtype), "h w c -> (h w) c") for x in (image, image_pe))
        own = embedding_table(nn.Embed(classes, dim, name="mask_tokens")).astype(dtype)
        tokens = own
        for i in range(2):
            block = PriorBlock(self.heads, self.hidden, i == 0, dtype, name=f"layers_{i}")
            tokens, image = block(tokens, image, own, positions, prior)
        final = CrossAttention(self.heads, dim // 2, dtype, name="final_attn_token_to_image")
        tokens = tokens + final((tokens + own)[None], (image + positions)[None], image[None])[0]
        tokens = layer_norm("norm_final_attn", NORM_EPSILON, dtype)(tokens)

        pixels = self._upscale(rearrange(image, "(h w) c -> 1 h w c", h=h), stage.pixels)
        widths = (*(dim,) * 4, pixels.shape[-1])
        weights = [ReluMlp(widths, dtype, name=f"hypernetwork_{m}")(tokens[m]) for m in range(classes)]
        return masks_of(jnp.stack(weights)[None], pixels)[0]

    def _upscale(self, image: Array, skip: Array) -> Array:
        """(1, h, w, c) and the first stage's pixels (1, 4h, 4w, c / 8) -> (1, s h, s w, features)."""
        dim = image.shape[-1]
        double = {"kernel_size": (2, 2), "strides": (2, 2), "dtype": self.dtype}
        x = UpConv(dim // 4, **double, name="output_upscaling_0")(image)
        x = gelu(layer_norm("output_upscaling_1", 1e-6, self.dtype)(x))
        x = gelu(UpConv(dim // 8, **double, name="output_upscaling_3")(x))
        x = jnp.concatenate([x, skip], axis=-1)
        for i in range(self.doublings):
            x = UpConv(max(1, dim // 2 ** (3 + i)), **double, name=f"skip_{i}")(x)
            x = gelu(layer_norm(f"skip_norm_{i}", 1e-6, self.dtype)(x))
        if not self.doublings:
            x = gelu(nn.Dense(dim // 16, dtype=self.dtype, name="skip")(x))
        return x
