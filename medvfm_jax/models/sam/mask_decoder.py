"""SAM's mask decoder: image embedding and prompt tokens -> mask logits and predicted IoU.

Source: Kirillov et al. 2023, "Segment Anything", appendix A, "Lightweight mask decoder".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import dot_logits, softmax_average
from medvfm_jax.models.convolution import UpConv
from medvfm_jax.models.layers import MlpBlock, ReluMlp, embedding_table, gelu, layer_norm

NORM_EPSILON = 1e-5  # PyTorch's default, where SAM says nothing else


class CrossAttention(nn.Module):
    """Multi-head attention, queries (Q, n, c) on keys and values (Q or 1, m, c) -> (Q, n, c).

    ``internal`` is the width inside.  ``present`` (Q, m) leaves keys out; None keeps all.
    """

    heads: int
    internal: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, q: Array, k: Array, v: Array, present: Array | None = None) -> Array:
        def project(x: Array, name: str) -> Array:
            x = nn.Dense(self.internal, dtype=self.dtype, name=name)(x)
            return rearrange(x, "q n (heads d) -> q heads n d", heads=self.heads)

        dim = q.shape[-1]
        q, k, v = project(q, "q_proj"), project(k, "k_proj"), project(v, "v_proj")
        logits = dot_logits(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k)
        if present is not None:
            logits = jnp.where(present[:, None, None, :], logits, -jnp.inf)
        out = rearrange(softmax_average(logits, v), "q heads n d -> q n (heads d)")
        return nn.Dense(dim, dtype=self.dtype, name="out_proj")(out)


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, the image to the tokens; post-norm.

    tokens (Q, T, c), image (Q or 1, n, c), their positional encodings, presence of tokens (Q, T)
    -> tokens (Q, T, c), image (Q, n, c).  In the first block the self-attention takes no positions and
    replaces the tokens instead of being added.  efficient: in EfficientSAM it is added there too, later ones are added
    to tokens with their positions and take values from those, and the MLP has a GELU.
    """

    heads: int
    hidden: int
    downsample: int
    first: bool
    dtype: Any = jnp.float32
    efficient: bool = False

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, token_pe: Array, image_pe: Array, present: Array | None
    ) -> tuple[Array, Array]:
        dim, dtype = tokens.shape[-1], self.dtype
        inner = dim // self.downsample

        self_attention = CrossAttention(self.heads, dim, dtype, name="self_attn")
        if self.efficient:
            tokens = tokens if self.first else tokens + token_pe
            tokens = tokens + self_attention(tokens, tokens, tokens, present)
        elif self.first:
            tokens = self_attention(tokens, tokens, tokens, present)
        else:
            q = tokens + token_pe
            tokens = tokens + self_attention(q, q, tokens, present)
        tokens = layer_norm("norm1", NORM_EPSILON, dtype)(tokens)

        to_image = CrossAttention(self.heads, inner, dtype, name="cross_attn_token_to_image")
        tokens = tokens + to_image(tokens + token_pe, image + image_pe, image)
        tokens = layer_norm("norm2", NORM_EPSILON, dtype)(tokens)

        activation = gelu if self.efficient else nn.relu
        tokens = tokens + MlpBlock(self.hidden, activation, dtype, name="mlp")(tokens)
        tokens = layer_norm("norm3", NORM_EPSILON, dtype)(tokens)

        to_tokens = CrossAttention(self.heads, inner, dtype, name="cross_attn_image_to_token")
        image = image + to_tokens(image + image_pe, tokens + token_pe, tokens, present)
        return tokens, layer_norm("norm4", NORM_EPSILON, dtype)(image)


class TwoWayTransformer(nn.Module):
    """``depth`` two-way blocks and a last attention of tokens to the image; shapes as in TwoWayBlock."""

    depth: int
    heads: int
    hidden: int
    downsample: int = 2
    dtype: Any = jnp.float32
    efficient: bool = False

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, image_pe: Array, present: Array | None = None
    ) -> tuple[Array, Array]:
        token_pe = tokens
        for i in range(self.depth):
            shape = self.heads, self.hidden, self.downsample, i == 0, self.dtype, self.efficient
            block = TwoWayBlock(*shape, name=f"layers_{i}")
            tokens, image = block(tokens, image, token_pe, image_pe, present)
        inner = tokens.shape[-1] // self.downsample
        last = CrossAttention(self.heads, inner, self.dtype, name="final_attn_token_to_image")
        tokens = tokens + last(tokens + token_pe, image + image_pe, image)
        return layer_norm("norm_final_attn", NORM_EPSILON, self.dtype)(tokens), image


class Stage(NamedTuple):
    """Within the decoder: tokens of the masks (Q, M, c), the image (Q, h, w, c) and its pixels (Q, 4h, 4w, c / 8)."""

    tokens: Array
    image: Array
    pixels: Array


class MaskDecoder(nn.Module):
    """Embedding (h, w, c) and prompts' tokens -> float32 logits (Q, M, 4h, 4w) and IoU (Q, M).

    Of a volume (d, h, w, c) where ``_upscale`` is that of one.  ``outputs`` mask tokens, each with its own
    hypernetwork.  SAM has 4: ``multimask`` takes the last three, otherwise the first.  ``all_masks`` returns every
    output and no IoU, for semantic segmentation.  ``efficient``: as EfficientSAM has it, see ``TwoWayBlock``; GELU in
    all MLPs, and upscaled features are normalised all together.
    ``doublings``: of the side from embedding to logits, 2 in SAM; each halves the features.
    ``stages``: return a ``Stage`` too, for decoders that go on from there.
    ``quality_hidden``: width of the head of the IoU, None for ``dim``.
    """

    dim: int = 256
    outputs: int = 4
    depth: int = 2
    heads: int = 8
    hidden: int = 2048
    all_masks: bool = False
    doublings: int = 2
    stages: bool = False
    dtype: Any = jnp.float32
    efficient: bool = False
    quality_hidden: int | None = None

    @nn.compact
    def __call__(
        self,
        embedding: Array,
        image_pe: Array,
        sparse: Array,
        dense: Array,
        present: Array | None = None,
        multimask: bool = False,
        direction: Array | None = None,
    ) -> tuple[Array, Array | None] | tuple[Array, Array | None, Stage]:
        """Answer every prompt; ``direction`` (Q, c / 8) is added to the weights of all masks."""
        sides, dtype = embedding.shape[:-1], self.dtype
        own = [embedding_table(nn.Embed(1, self.dim, name="iou_token"))]
        own.append(embedding_table(nn.Embed(self.outputs, self.dim, name="mask_tokens")))
        own = jnp.concatenate(own).astype(dtype)
        prompts = sparse.shape[0]
        tokens = jnp.concatenate([jnp.broadcast_to(own, (prompts, *own.shape)), sparse.astype(dtype)], axis=1)
        if present is not None:
            always = jnp.ones((prompts, own.shape[0]), bool)
            present = jnp.concatenate([always, present], axis=1)
        image = embedding.astype(dtype) + dense
        image = image.reshape(image.shape[0], -1, self.dim)
        positions = image_pe.astype(dtype).reshape(-1, self.dim)
        options = {"dtype": dtype, "efficient": self.efficient}
        transformer = TwoWayTransformer(self.depth, self.heads, self.hidden, **options, name="transformer")
        tokens, image = transformer(tokens, image, positions, present)

        image = image.reshape(image.shape[0], *sides, self.dim)
        pixels = self._upscale(image)
        more = (Stage(tokens[:, 1 : 1 + self.outputs], image, pixels),) if self.stages else ()
        widths, activation = (self.dim, self.dim, pixels.shape[-1]), gelu if self.efficient else nn.relu
        # All hypernetworks run, so that all can be adapted; the compiler drops those without effect.
        weights = [
            ReluMlp(widths, dtype, activation, name=f"output_hypernetworks_mlps_{i}")(tokens[:, 1 + i])
            for i in range(self.outputs)
        ]
        kept = slice(None) if self.all_masks else slice(1, None) if multimask else slice(0, 1)
        chosen = jnp.stack(weights[kept], axis=1)
        if direction is not None:
            chosen = chosen + direction[:, None]
        logits = masks_of(chosen, pixels)
        if self.all_masks:
            return logits, None, *more
        hidden = self.quality_hidden or self.dim
        widths = (hidden, hidden, self.outputs)
        iou = ReluMlp(widths, dtype, activation, name="iou_prediction_head")(tokens[:, 0])
        return logits, iou[:, kept].astype(jnp.float32), *more

    def _upscale(self, image: Array) -> Array:
        """Image tokens (Q, h, w, c) -> pixel features (Q, 4h, 4w, c / 8).

        The last of the doublings has no norm; layers are numbered as in the checkpoints, activations included.
        """
        double = {"kernel_size": (2, 2), "strides": (2, 2), "dtype": self.dtype}
        x, last = image, self.doublings - 1
        for i in range(self.doublings):
            features = max(1, self.dim // 2 ** (i + 2))
            x = UpConv(features, **double, name=f"output_upscaling_{3 * i}")(x)
            if i < last:
                x = self._norm(f"output_upscaling_{3 * i + 1}")(x)
            x = gelu(x)
        return x

    def _norm(self, name: str) -> Callable[[Array], Array]:
        if self.efficient:  # statistics of a prompt's whole map
            return nn.GroupNorm(1, epsilon=NORM_EPSILON, use_fast_variance=False, dtype=self.dtype, name=name)
        return layer_norm(name, 1e-6, self.dtype)


def masks_of(weights: Array, pixels: Array) -> Array:
    """Weights (Q, M, c), features of pixels (Q, h, w, c) or voxels (Q, d, h, w, c) -> float32 logits (Q, M, h, w).

    Pixels come first in the product: in the other order XLA turns their features round, the decoder's largest array.
    """
    count, *sides, width = pixels.shape
    flat = pixels.reshape(count, -1, width)
    logits = jnp.einsum("qnc,qmc->qnm", flat, weights, preferred_element_type=jnp.float32)
    return jnp.swapaxes(logits, 1, 2).reshape(logits.shape[0], -1, *sides)
