"""SegVol's prompt encoder: points, boxes and the embedding of words -> tokens, and a map added to the embedding.

Source: Du et al. 2023, "SegVol" (arXiv 2311.13385); BAAI-DCAI/SegVol,
``segment_anything_volumetric/modeling/prompt_encoder.py`` and ``network/model.py``.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.sam.prompt_encoder import BadPrompts, PromptEncoder
from medvfm_jax.models.sam_med3d.prompt_encoder import RandomPositions3d
from medvfm_jax.types import ABSENT, BOX_TOP_LEFT, PAD, Prompts


class SegVolPromptEncoder(PromptEncoder):
    """``PromptEncoder`` over a volume: points (Q, P, 3) are voxels (depth, row, column), corners of boxes too.

    Labels are those of SAM.  The release has layers for mask prompts, of two dimensions, which nothing can use; they
    are left out.  ``text_token`` and ``text_direction`` belong to the release's ``text_encoder`` and ``mask_decoder``.

    Attributes:
        window: (D, H, W) in voxels.
        text_features: of the embedding of words.
    """

    window: tuple[int, int, int] = (32, 256, 256)
    text_features: int = 512

    def setup(self) -> None:
        self.pe_layer = RandomPositions3d(self.dim, parts=2)
        self.point_embeddings = self._tables()
        self.not_a_point_embed = nn.Embed(1, self.dim)
        self.no_mask_embed = nn.Embed(1, self.dim)
        self.text_token = nn.Dense(self.dim, dtype=self.dtype)
        self.text_direction = nn.Dense(self.dim // 8, dtype=self.dtype)

    def unit(self, points: Array) -> Array:
        """Voxels -> shares; as in the release the depth is divided by the height and the row by the depth."""
        depth, height, width = self.window
        return points / np.float32([height, depth, width])

    def __call__(
        self, prompts: Prompts | None, text: Array | None = None
    ) -> tuple[Array, Array, Array, Array | None]:
        """Prompts and text (Q, text_features) -> tokens, their presence, dense map, direction (Q, dim / 8) or None.

        Raises:
            BadPrompts: a mask prompt, or text that does not fit the prompts.
        """
        if prompts is not None and prompts.mask is not None and not self.is_initializing():
            raise BadPrompts("SegVol takes points, boxes and text, no mask prompt: leave the mask out.")
        asked = prompts if prompts is None else padded(prompts._replace(mask=None))
        sparse, present, dense = super().__call__(asked)
        if text is None:
            return sparse, present, dense, None
        if text.ndim != 2 or text.shape[1] != self.text_features:
            raise BadPrompts(f"text needs (Q, {self.text_features}) numbers, not {text.shape}.")
        if prompts is None:
            sparse, present = jnp.zeros((len(text), 0, self.dim)), jnp.zeros((len(text), 0), bool)
        if len(text) != len(sparse):
            raise BadPrompts(f"{len(sparse)} prompts have text for {len(text)}: give each its own.")
        token = self.text_token(text.astype(self.dtype))
        sparse = jnp.concatenate([sparse.astype(self.dtype), token[:, None]], axis=1)
        present = jnp.pad(present, ((0, 0), (0, 1)), constant_values=True)
        return sparse, present, dense, self.text_direction(token)


def padded(prompts: Prompts) -> Prompts:
    """Prompts with one slot more, a padding point where a question has points, no box and no padding yet."""
    labels = prompts.labels
    if labels.shape[1] == 0:
        return prompts
    enough = ((labels >= BOX_TOP_LEFT) | (labels == PAD)).any(axis=1) | (labels == ABSENT).all(axis=1)
    labels = jnp.concatenate([labels, jnp.where(enough, ABSENT, PAD)[:, None]], axis=1)
    return prompts._replace(points=jnp.pad(prompts.points, ((0, 0), (0, 1), (0, 0))), labels=labels)
