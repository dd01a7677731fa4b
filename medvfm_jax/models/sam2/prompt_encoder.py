"""SAM 2's prompt encoder: SAM's, with the four kinds of points in one table and a padding point in every question.

Source: facebookresearch/sam2, ``sam2/modeling/sam/prompt_encoder.py`` and ``sam2/sam2_image_predictor.py``.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.sam.prompt_encoder import PromptEncoder
from medvfm_jax.types import ABSENT, PAD, Prompts


class JoinedEmbed(nn.Embed):
    """An embedding stored as (features, n): both releases' tables join to it, four of one row or one of four."""

    def setup(self) -> None:
        shape = (self.features, self.num_embeddings)
        self.columns = self.param("columns", nn.initializers.normal(1.0), shape)

    def __call__(self, inputs: Array) -> Any:
        """Indices (n,) -> (n, features)."""
        return self.columns.T[inputs]


class Sam2PromptEncoder(PromptEncoder):
    """See ``PromptEncoder``; parameters differ in ``point_embeddings_0/columns`` (dim, 4) alone."""

    def _tables(self) -> list[nn.Embed]:
        return [JoinedEmbed(4, self.dim)]


def with_padding(prompts: Prompts | None) -> Prompts | None:
    """Prompts with one slot more, a padding point where a question of points or a box has none.

    SAM appends one to points without a box, SAM 2 to boxes too, which it takes as two points.  Prompts without any slot
    (a mask alone) are unchanged.
    """
    if prompts is None or prompts.labels.shape[1] == 0:
        return prompts
    has_one = (prompts.labels == PAD).any(axis=1, keepdims=True)
    labels = jnp.concatenate([prompts.labels, jnp.where(has_one, ABSENT, PAD)], axis=1)
    points = jnp.pad(prompts.points, ((0, 0), (0, 1), (0, 0)))
    return prompts._replace(points=points, labels=labels)
