"""SAM's prompt encoder: points, boxes and a rough mask -> tokens and a map added to the image embedding.

Source: Kirillov et al. 2023, "Segment Anything", section 3 and appendix A; positions by the random Fourier
features of Tancik et al. 2020.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.layers import LayerNorm, embedding_table, gelu
from medvfm_jax.types import ABSENT, PAD, MedvfmError, Prompts

NORM_EPSILON = 1e-6


class BadPrompts(MedvfmError):
    """The prompts do not fit the model."""


class RandomPositions(nn.Module):
    """Positions in the unit square (..., 2), x before y -> sines and cosines (..., dim) in float32.

    The frequencies are drawn once and never trained; they belong to the weights.
    """

    dim: int

    @nn.compact
    def __call__(self, positions: Array) -> Array:
        shape = (2, self.dim // 2)
        matrix = self.param("positional_encoding_gaussian_matrix", nn.initializers.normal(1.0), shape)
        # Written out: a matrix product would be rounded to bfloat16 on TPU, and angles cannot take that.
        signed = 2.0 * positions.astype(jnp.float32) - 1.0
        angle = 2.0 * np.float32(np.pi) * (signed[..., :1] * matrix[0] + signed[..., 1:] * matrix[1])
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    def of_grid(self, grid: tuple[int, int]) -> Array:
        """Positional encoding of the centres of a grid's cells, (h, w, dim) float32."""
        h, w = grid
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        return self(jnp.asarray(np.stack([x, y], axis=-1), jnp.float32))


class PromptEncoder(nn.Module):
    """Prompts -> sparse tokens (Q, P, dim), their presence (Q, P), dense map (Q or 1, h, w, dim).

    A token whose label is PAD has no position; an ABSENT one is not there for the decoder. Labels outside the table
    cannot be refused in a compiled program, which takes another entry for them: `images.make_prompts` refuses them.
    ``None`` as prompts gives no sparse tokens, (1, 0, dim).  The dense map has one entry for all Q without a mask
    prompt, whose side is 4 times the grid's.
    """

    dim: int
    image_size: int
    grid: tuple[int, int]
    mask_channels: int = 16
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.pe_layer = RandomPositions(self.dim)
        # Linen names the members of a list point_embeddings_0, _1, ...: background, foreground, box corners.
        self.point_embeddings = self._tables()
        self.not_a_point_embed = nn.Embed(1, self.dim)
        self.no_mask_embed = nn.Embed(1, self.dim)
        few = self.mask_channels // 4
        options = {"dtype": self.dtype}
        self.mask_downscaling_0 = PatchConv(few, (2, 2), 2, **options)
        self.mask_downscaling_1 = LayerNorm(NORM_EPSILON, **options)
        self.mask_downscaling_3 = PatchConv(self.mask_channels, (2, 2), 2, **options)
        self.mask_downscaling_4 = LayerNorm(NORM_EPSILON, **options)
        self.mask_downscaling_6 = PatchConv(self.dim, (1, 1), 1, **options)

    def _tables(self) -> list[nn.Embed]:
        """Of the four kinds of points together."""
        return [nn.Embed(1, self.dim) for _ in range(4)]

    def __call__(self, prompts: Prompts | None) -> tuple[Array, Array, Array]:
        sparse, present = self._sparse(prompts)
        no_mask = embedding_table(self.no_mask_embed)[0]
        if prompts is None or prompts.mask is None:
            dense = jnp.broadcast_to(no_mask, (1, *self.grid, self.dim))
        else:
            dense = self._dense(prompts.mask)
        return sparse.astype(self.dtype), present, dense.astype(self.dtype)

    def image_positions(self) -> Array:
        """Positional encoding of the embedding's cells, (h, w, dim) float32."""
        return self.pe_layer.of_grid(self.grid)

    def unit(self, points: Array) -> Array:
        """Positions in pixels or voxels -> in the unit square or cube."""
        return points / self.image_size

    def _sparse(self, prompts: Prompts | None) -> tuple[Array, Array]:
        kinds = [embedding_table(e) for e in (self.not_a_point_embed, *self.point_embeddings)]
        if prompts is None:
            return jnp.zeros((1, 0, self.dim), jnp.float32), jnp.zeros((1, 0), bool)
        points, labels = prompts.points, prompts.labels
        rank = len(self.grid)
        if points.shape[-1] != rank or points.shape[:-1] != labels.shape or labels.ndim != 2:
            raise BadPrompts(
                f"prompts need points (Q, P, {rank}) and labels (Q, P), not {points.shape} and {labels.shape}."
            )
        positions = self.pe_layer(self.unit(points + 0.5))
        positions = jnp.where((labels > PAD)[..., None], positions, 0.0)
        tokens = positions + jnp.concatenate(kinds)[labels - PAD]
        present = labels != ABSENT
        return jnp.where(present[..., None], tokens, 0.0), present

    def _dense(self, mask: Array) -> Array:
        sides = tuple(4 * n for n in self.grid)
        if mask.shape[1:] != (*sides, 1):
            raise BadPrompts(
                f"a mask prompt must be (Q, {', '.join(map(str, sides))}, 1) logits, not {mask.shape}."
            )
        x = gelu(self.mask_downscaling_1(self.mask_downscaling_0(mask)))
        x = gelu(self.mask_downscaling_4(self.mask_downscaling_3(x)))
        return self.mask_downscaling_6(x)
