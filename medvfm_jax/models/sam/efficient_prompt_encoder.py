"""EfficientSAM's prompt encoder: points and boxes -> tokens, always at least six of them.

Source: Xiong et al. 2024, "EfficientSAM"; the release's efficient_sam/efficient_sam_decoder.py and
efficient_sam.py (``predict_masks``).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.layers import embedding_table
from medvfm_jax.models.sam.prompt_encoder import BadPrompts, RandomPositions
from medvfm_jax.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, Prompts

TOKENS = 6  # of a prompt; fewer are filled up with invalid points


class EfficientPromptEncoder(nn.Module):
    """Prompts -> sparse tokens (Q, P, dim) with P >= 6, their presence (Q, P), dense map (1, 1, 1, dim) of zeros.

    Points of the background have a position and no embedding of their own, as in the release. PAD and ABSENT points
    are what the release fills up with: invalid ones at pixel (-1, -1), so many that there are six in all; the rest is
    absent. More than six points are all used, where the release drops those after the sixth. ``None`` gives no tokens.
    Raises BadPrompts for a mask, which the model cannot take.
    """

    dim: int
    image_size: int
    grid: tuple[int, int]
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.pe_layer = RandomPositions(self.dim)
        self.invalid_points = nn.Embed(1, self.dim)
        self.point_embeddings = nn.Embed(1, self.dim)
        self.bbox_top_left_embeddings = nn.Embed(1, self.dim)
        self.bbox_bottom_right_embeddings = nn.Embed(1, self.dim)

    def __call__(self, prompts: Prompts | None) -> tuple[Array, Array, Array]:
        dense = jnp.zeros((1, 1, 1, self.dim), self.dtype)
        modules = (
            self.invalid_points,
            self.point_embeddings,
            self.bbox_top_left_embeddings,
            self.bbox_bottom_right_embeddings,
        )
        invalid, *kinds = [embedding_table(module)[0] for module in modules]
        if prompts is None:
            return jnp.zeros((1, 0, self.dim), self.dtype), jnp.zeros((1, 0), bool), dense
        if prompts.mask is not None:
            raise BadPrompts("EfficientSAM takes no mask as a prompt; give points or boxes.")
        points, labels = _filled_up(prompts.points, prompts.labels)
        real = labels >= 0
        points = jnp.where(real[..., None], points, -1.0)
        tokens = self.pe_layer((points + 0.5) / self.image_size) + jnp.where(real[..., None], 0.0, invalid)
        for label, kind in zip((FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT), kinds, strict=True):
            tokens = tokens + jnp.where((labels == label)[..., None], kind, 0.0)
        missing = TOKENS - real.sum(-1, keepdims=True)
        present = real | (jnp.cumsum(~real, -1) <= missing)
        return jnp.where(present[..., None], tokens, 0.0).astype(self.dtype), present, dense

    def image_positions(self) -> Array:
        """Positional encoding of the embedding's cells, (h, w, dim) float32."""
        return self.pe_layer.of_grid(self.grid)


def _filled_up(points: Array, labels: Array) -> tuple[Array, Array]:
    """At least six points (Q, P, 2) and labels (Q, P); raises BadPrompts for shapes that are no prompts."""
    if points.shape[-1] != 2 or points.shape[:-1] != labels.shape or labels.ndim != 2:
        raise BadPrompts(
            f"prompts need points (Q, P, 2) and labels (Q, P), not {points.shape} and {labels.shape}."
        )
    more = max(0, TOKENS - labels.shape[1])
    return jnp.pad(points, ((0, 0), (0, more), (0, 0))), jnp.pad(
        labels, ((0, 0), (0, more)), constant_values=-1
    )
