"""SAM-Med3D's prompt encoder: points in a volume and a rough mask -> tokens and a map added to the embedding.

Source: Wang et al. 2023, "SAM-Med3D" (arXiv 2310.15161); uni-medical/SAM-Med3D,
``segment_anything/modeling/prompt_encoder3D.py``.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.layers import LayerNorm
from medvfm_jax.models.sam.prompt_encoder import NORM_EPSILON, PromptEncoder


class RandomPositions3d(nn.Module):
    """Positions in the unit cube (..., 3) -> sines, cosines and the sines again (..., dim) in float32.

    The frequencies are drawn once and never trained; they belong to the weights.  ``parts``: 3 of SAM-Med3D; with 2 the
    sines are not there again.
    """

    dim: int
    parts: int = 3

    @nn.compact
    def __call__(self, positions: Array) -> Array:
        shape = (3, self.dim // self.parts)
        matrix = self.param("positional_encoding_gaussian_matrix", nn.initializers.normal(1.0), shape)
        # Written out: a matrix product would be rounded to bfloat16 on TPU, and angles cannot take that.
        signed = 2.0 * positions.astype(jnp.float32) - 1.0
        turns = sum(signed[..., i : i + 1] * matrix[i] for i in range(3))
        angle = 2.0 * np.float32(np.pi) * turns
        waves = jnp.sin(angle), jnp.cos(angle)
        return jnp.concatenate((*waves, waves[0])[: self.parts], axis=-1)

    def of_grid(self, grid: tuple[int, int, int]) -> Array:
        """Positional encoding of the centres of a grid's cells, (d, h, w, dim) float32.

        As in the release the first two axes change places here, and not in points.
        """
        first, second, third = np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij")
        return self(jnp.asarray(np.stack([second, first, third], axis=-1), jnp.float32))


class PromptEncoder3d(PromptEncoder):
    """``PromptEncoder`` over a cube: points (Q, P, 3) are voxels (depth, row, column), labels 1 and 0.

    ``image_size`` is the cube's side, ``grid`` (d, h, w).  A mask prompt holds logits at a quarter of the cube,
    (Q, 4d, 4h, 4w, 1); the release starts from one that is zero.
    """

    def setup(self) -> None:
        self.pe_layer = RandomPositions3d(self.dim)
        self.point_embeddings = [nn.Embed(1, self.dim) for _ in range(2)]  # background, foreground
        self.not_a_point_embed = nn.Embed(1, self.dim)
        self.no_mask_embed = nn.Embed(1, self.dim)
        half = {"kernel_size": (2, 2, 2), "strides": 2, "padding": "VALID", "dtype": self.dtype}
        self.mask_downscaling_0 = Conv(self.mask_channels // 4, **half)
        self.mask_downscaling_1 = LayerNorm(NORM_EPSILON, dtype=self.dtype)
        self.mask_downscaling_3 = Conv(self.mask_channels, **half)
        self.mask_downscaling_4 = LayerNorm(NORM_EPSILON, dtype=self.dtype)
        self.mask_downscaling_6 = nn.Dense(self.dim, dtype=self.dtype)
