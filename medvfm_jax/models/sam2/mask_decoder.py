"""SAM 2's mask decoder: SAM's two-way transformer with a token for the object score and finer features in the masks.

Source: Ravi et al. 2024, "SAM 2", appendix C; facebookresearch/sam2, ``sam2/modeling/sam/mask_decoder.py``.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.convolution import UpConv
from medvfm_jax.models.layers import ReluMlp, embedding_table, gelu, layer_norm
from medvfm_jax.models.sam.mask_decoder import TwoWayTransformer, masks_of
from medvfm_jax.models.sam2.encoder import Levels

STABILITY_OFFSET = 0.05  # of the logits, both ways
STABILITY_LEAST = 0.98


class Decoded(NamedTuple):
    """Of Q prompts and M masks: float32 logits (Q, M, 4h, 4w), IoU (Q, M), object score (Q,), tokens (Q, M, c).

    Mask 0 answers the prompt alone, masks 1 to 3 are three readings of an ambiguous one.
    """

    logits: Array
    iou: Array | None
    object_score: Array | None
    tokens: Array


class MaskDecoder(nn.Module):
    """Levels of an image and prompts' tokens -> ``Decoded``.

    ``outputs`` mask tokens, each with its own hypernetwork.  ``quality``: with the heads of IoU and object score, which
    a model of classes has not.  The embedding of an image without memory is added to the coarse level unless
    ``remembering``: then memory attention has put something in its place.
    """

    dim: int = 256
    outputs: int = 4
    depth: int = 2
    heads: int = 8
    hidden: int = 2048
    quality: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        levels: Levels,
        image_pe: Array,
        sparse: Array,
        dense: Array,
        present: Array | None = None,
        remembering: bool = False,
    ) -> Decoded:
        h, w, dtype = *levels.coarse.shape[:2], self.dtype
        no_memory = self.param("no_mem_embed", nn.initializers.normal(0.02), (1, 1, self.dim))
        coarse = levels.coarse.astype(dtype)
        coarse = coarse if remembering else coarse + no_memory[0, 0].astype(dtype)
        names = (("obj_score_token", 1), ("iou_token", 1), ("mask_tokens", self.outputs))
        own = [embedding_table(nn.Embed(count, self.dim, name=name)) for name, count in names]
        own = jnp.concatenate(own).astype(dtype)
        prompts = sparse.shape[0]
        tokens = jnp.concatenate([jnp.broadcast_to(own, (prompts, *own.shape)), sparse.astype(dtype)], axis=1)
        if present is not None:
            always = jnp.ones((prompts, own.shape[0]), bool)
            present = jnp.concatenate([always, present], axis=1)
        image = rearrange(coarse + dense, "q h w c -> q (h w) c")
        positions = rearrange(image_pe.astype(dtype), "h w c -> (h w) c")
        transformer = TwoWayTransformer(self.depth, self.heads, self.hidden, dtype=dtype, name="transformer")
        tokens, image = transformer(tokens, image, positions, present)

        pixels = self._upscale(rearrange(image, "q (h w) c -> q h w c", h=h, w=w), levels)
        widths, masks = (self.dim, self.dim, self.dim // 8), tokens[:, 2 : 2 + self.outputs]
        weights = [
            ReluMlp(widths, dtype, name=f"output_hypernetworks_mlps_{i}")(masks[:, i])
            for i in range(self.outputs)
        ]
        logits = masks_of(jnp.stack(weights, axis=1), pixels)
        if not self.quality:
            return Decoded(logits, None, None, masks)
        iou = ReluMlp((self.dim, self.dim, self.outputs), dtype, name="iou_prediction_head")(tokens[:, 1])
        score = ReluMlp((self.dim, self.dim, 1), dtype, name="pred_obj_score_head")(tokens[:, 0])
        return Decoded(
            logits, jax.nn.sigmoid(iou.astype(jnp.float32)), score[:, 0].astype(jnp.float32), masks
        )

    def _upscale(self, image: Array, levels: Levels) -> Array:
        """Image tokens (Q, h, w, c) and the finer levels -> pixel features (Q, 4h, 4w, c / 8)."""
        double = {"kernel_size": (2, 2), "strides": (2, 2), "dtype": self.dtype}
        x = UpConv(self.dim // 4, **double, name="output_upscaling_0")(image)
        x = x + levels.middle.astype(self.dtype)
        x = gelu(layer_norm("output_upscaling_1", 1e-6, self.dtype)(x))
        x = UpConv(self.dim // 8, **double, name="output_upscaling_3")(x)
        return gelu(x + levels.fine.astype(self.dtype))


def stability(logits: Array) -> Array:
    """Logits (..., h, w) -> IoU (...) of the masks above +0.05 and above -0.05; 1 where nothing is above either."""
    inner = (logits > STABILITY_OFFSET).sum((-2, -1))
    outer = (logits > -STABILITY_OFFSET).sum((-2, -1))
    return jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0)


def chosen(decoded: Decoded, multimask: bool, training: bool) -> Decoded:
    """All masks -> the three of an ambiguous prompt, or the one of a clear prompt.

    The one is number 0, or where its stability is below 0.98 that of the three others which is rated best.  Not in
    ``training``: then it is always number 0, as in the reference.  The token of a single mask is always that of mask 0.
    """
    if multimask or training:
        kept = slice(1, None) if multimask else slice(0, 1)
        return jax.tree.map(lambda x: x[:, kept] if x.ndim > 1 else x, decoded)
    unstable = stability(decoded.logits[:, 0]) < STABILITY_LEAST
    number = jnp.where(unstable, 1 + decoded.iou[:, 1:].argmax(1), 0)

    def one(x: Array) -> Array:
        return jnp.take_along_axis(x, number.reshape(-1, *[1] * (x.ndim - 1)), axis=1)

    return Decoded(one(decoded.logits), one(decoded.iou), decoded.object_score, decoded.tokens[:, :1])
