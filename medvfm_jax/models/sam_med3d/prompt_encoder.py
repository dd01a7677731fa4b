"""SAM-Med3D's prompt encoder: points in a volume and a rough mask -> tokens and a map added to the embedding.

Source: Wang et al. 2023, "SAM-Med3D" (arXiv 2310.15161); uni-medical/SAM-Med3D,
``segment_anything/modeling/prompt_encoder3D.py``.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.layers import LayerNorm, embedding_table, gelu
from medvfm_jax.models.sam.prompt_encoder import NORM_EPSILON, BadPrompts
from medvfm_jax.types import ABSENT, PAD, Prompts


class RandomPositions3d(nn.Module):
    """Positions in the unit cube (..., 3) -> sines, cosines and the sines again (..., dim) in float32.

    The frequencies are drawn once and never trained; they belong to the weights.
    """

    dim: int

    @nn.compact
    def __call__(self, positions: Array) -> Array:
        matrix = self.param(
            "positional_encoding_gaussian_matrix", nn.initializers.normal(1.0), (3, self.dim // 3)
        )
        # Written out: a matrix product would be rounded to bfloat16 on TPU, and angles cannot take that.
        signed = 2.0 * positions.astype(jnp.float32) - 1.0
        turns = sum(signed[..., i : i + 1] * matrix[i] for i in range(3))
        angle = 2.0 * np.float32(np.pi) * turns
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def of_grid(self, grid: tuple[int, int, int]) -> Array:
        """Positional encoding of the centres of a grid's cells, (d, h, w, dim) float32.

        As in the release the first two axes change places here, and not in points.
        """
        first, second, third = np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid), indexing="ij")
        return self(jnp.asarray(np.stack([second, first, third], axis=-1), jnp.float32))


class PromptEncoder3d(nn.Module):
    """Prompts -> sparse tokens (Q, P, dim), their presence (Q, P), dense map (Q or 1, d, h, w, dim).

    Points (Q, P, 3) are voxels (depth, row, column) of the patch, labels 1 and 0, or PAD and ABSENT as in
    ``sam.prompt_encoder.PromptEncoder``.  ``None`` as prompts gives no sparse tokens.  A mask prompt holds logits at a
    quarter of the patch, (Q, 4d, 4h, 4w, 1); the release starts from one that is zero.
    """

    dim: int
    sides: tuple[int, int, int]
    grid: tuple[int, int, int]
    mask_channels: int = 16
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.pe_layer = RandomPositions3d(self.dim)
        self.point_embeddings = [nn.Embed(1, self.dim) for _ in range(2)]  # background, foreground
        self.not_a_point_embed = nn.Embed(1, self.dim)
        self.no_mask_embed = nn.Embed(1, self.dim)
        half = {"kernel_size": (2, 2, 2), "strides": 2, "padding": "VALID", "dtype": self.dtype}
        self.mask_downscaling_0 = nn.Conv(self.mask_channels // 4, **half)
        self.mask_downscaling_1 = LayerNorm(NORM_EPSILON, dtype=self.dtype)
        self.mask_downscaling_3 = nn.Conv(self.mask_channels, **half)
        self.mask_downscaling_4 = LayerNorm(NORM_EPSILON, dtype=self.dtype)
        self.mask_downscaling_6 = nn.Dense(self.dim, dtype=self.dtype)

    def __call__(self, prompts: Prompts | None) -> tuple[Array, Array, Array]:
        sparse, present = self._sparse(prompts)
        no_mask = embedding_table(self.no_mask_embed)[0]
        if prompts is None or prompts.mask is None:
            dense = jnp.broadcast_to(no_mask, (1, *self.grid, self.dim))
        else:
            dense = self._dense(prompts.mask)
        return sparse.astype(self.dtype), present, dense.astype(self.dtype)

    def image_positions(self) -> Array:
        """Positional encoding of the embedding's cells, (d, h, w, dim) float32."""
        return self.pe_layer.of_grid(self.grid)

    def _sparse(self, prompts: Prompts | None) -> tuple[Array, Array]:
        kinds = [embedding_table(e) for e in (self.not_a_point_embed, *self.point_embeddings)]
        if prompts is None:
            return jnp.zeros((1, 0, self.dim), jnp.float32), jnp.zeros((1, 0), bool)
        points, labels = prompts.points, prompts.labels
        if points.shape[-1] != 3 or points.shape[:-1] != labels.shape or labels.ndim != 2:
            raise BadPrompts(
                f"prompts of a volume need points (Q, P, 3) and labels (Q, P), not {points.shape} and {labels.shape}."
            )
        positions = self.pe_layer((points + 0.5) / jnp.asarray(self.sides, jnp.float32))
        positions = jnp.where((labels > PAD)[..., None], positions, 0.0)
        tokens = positions + jnp.concatenate(kinds)[labels - PAD]
        present = labels != ABSENT
        return jnp.where(present[..., None], tokens, 0.0), present

    def _dense(self, mask: Array) -> Array:
        sides = tuple(4 * n for n in self.grid)
        if mask.ndim != 5 or mask.shape[1:] != (*sides, 1):
            raise BadPrompts(
                f"a mask prompt must be (Q, {', '.join(map(str, sides))}, 1) logits, not {mask.shape}."
            )
        x = gelu(self.mask_downscaling_1(self.mask_downscaling_0(mask)))
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(x)))
        return self.mask_downscaling_6(x)
