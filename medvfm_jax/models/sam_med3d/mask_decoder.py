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

from medvfm_jax.models.layers import gelu
from medvfm_jax.models.sam.mask_decoder import MaskDecoder


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


class MaskDecoder3d(MaskDecoder):
    """``MaskDecoder`` over a volume: embedding (d, h, w, c) -> logits (Q, M, 4d, 4h, 4w) and IoU (Q, M)."""

    dim: int = 384
    quality_hidden: int | None = 256

    def _upscale(self, image: Array) -> Array:
        """Tokens of the volume (Q, d, h, w, c) -> features of voxels (Q, 4d, 4h, 4w, c / 8)."""
        x = UpConv3d(self.dim // 4, self.dtype, name="output_upscaling_0")(image)
        x = gelu(self._norm("output_upscaling_1")(x))
        return gelu(UpConv3d(self.dim // 8, self.dtype, name="output_upscaling_3")(x))
