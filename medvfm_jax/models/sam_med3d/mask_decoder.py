"""SAM-Med3D's mask decoder: embedding of a volume and prompts' tokens -> mask logits and predicted IoU.

SAM's two-way transformer, and hypernetworks over voxels instead of pixels.

Source: Wang et al. 2023, "SAM-Med3D" (arXiv 2310.15161); uni-medical/SAM-Med3D,
``segment_anything/modeling/mask_decoder3D.py``.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.layers import ReluMlp, embedding_table, gelu, layer_norm
from medvfm_jax.models.sam.mask_decoder import TwoWayTransformer


class UpConv3d(nn.Module):
    """Transposed convolution of 2 x 2 x 2 with stride 2: x (..., d, h, w, c) -> (..., 2d, 2h, 2w, width).

    Its windows do not overlap, so it is one matrix product with ``kernel`` (c, 8 width) and a rearrangement.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(8 * self.width, use_bias=False, dtype=self.dtype, name="taps")(x)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x = rearrange(x, "... d h w (i j k c) -> ... (d i) (h j) (w k) c", i=2, j=2, k=2)
        return x + bias.astype(self.dtype)


class MaskDecoder3d(nn.Module):
    """Embedding (d, h, w, c) and prompts' tokens -> float32 logits (Q, M, 4d, 4h, 4w) and IoU (Q, M).

    ``outputs`` mask tokens, each with its own hypernetwork.  The release has 4: ``multimask`` takes the last three,
    otherwise the first.  ``all_masks`` returns every output and no IoU, for semantic segmentation.
    """

    dim: int = 384
    outputs: int = 4
    heads: int = 8
    hidden: int = 2048
    quality_hidden: int = 256
    all_masks: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        embedding: Array,
        image_pe: Array,
        sparse: Array,
        dense: Array,
        present: Array | None = None,
        multimask: bool = False,
    ) -> tuple[Array, Array | None]:
        d, h, w, dtype = *embedding.shape[:3], self.dtype
        own = [embedding_table(nn.Embed(1, self.dim, name="iou_token"))]
        own.append(embedding_table(nn.Embed(self.outputs, self.dim, name="mask_tokens")))
        own = jnp.concatenate(own).astype(dtype)
        prompts = sparse.shape[0]
        tokens = jnp.concatenate([jnp.broadcast_to(own, (prompts, *own.shape)), sparse.astype(dtype)], axis=1)
        if present is not None:
            present = jnp.concatenate([jnp.ones((prompts, own.shape[0]), bool), present], axis=1)
        image = rearrange(embedding.astype(dtype) + dense, "q d h w c -> q (d h w) c")
        positions = rearrange(image_pe.astype(dtype), "d h w c -> (d h w) c")
        transformer = TwoWayTransformer(2, self.heads, self.hidden, dtype=dtype, name="transformer")
        tokens, image = transformer(tokens, image, positions, present)

        x = rearrange(image, "q (d h w) c -> q d h w c", d=d, h=h, w=w)
        x = UpConv3d(self.dim // 4, dtype, name="output_upscaling_0")(x)
        x = gelu(layer_norm("output_upscaling_1", 1e-6, dtype)(x))
        voxels = gelu(UpConv3d(self.dim // 8, dtype, name="output_upscaling_3")(x))
        widths = (self.dim, self.dim, self.dim // 8)
        # All hypernetworks run, so that all can be adapted; the compiler drops those without effect.
        weights = [
            ReluMlp(widths, dtype, name=f"output_hypernetworks_mlps_{i}")(tokens[:, 1 + i])
            for i in range(self.outputs)
        ]
        kept = slice(None) if self.all_masks else slice(1, None) if multimask else slice(0, 1)
        chosen = jnp.stack(weights[kept], axis=1)
        logits = jnp.einsum("qdhwc,qmc->qmdhw", voxels, chosen, preferred_element_type=jnp.float32)
        if self.all_masks:
            return logits, None
        widths = (self.quality_hidden, self.quality_hidden, self.outputs)
        iou = ReluMlp(widths, dtype, name="iou_prediction_head")(tokens[:, 0])
        return logits, iou[:, kept].astype(jnp.float32)
