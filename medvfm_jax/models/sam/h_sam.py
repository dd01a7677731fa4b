"""SAM with a hierarchical decoder: SAM's own, whose masks guide a second one (H-SAM)."""

from dataclasses import replace

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.grown import as_kind, grow, sam_of
from medvfm_jax.models.sam.root import Sam
from medvfm_jax.models.sam.second_decoder import SecondDecoder
from medvfm_jax.types import Params, Prediction, Prompts


class HSam(Sam):
    """Image (S, S, 3) -> Prediction(logits (classes, s, s), earlier = the first stage's at that size)."""

    def setup(self) -> None:
        """SAM's parts, its decoder with what the second one needs, and ``second_decoder``."""
        super().setup()
        more = (self.spec.logits_shape[0] // self.spec.embedding[0]).bit_length() - 3
        self.second_decoder = SecondDecoder(hidden=self.decoder_hidden, doublings=more, dtype=self.dtype)

    def decode(self, embedding: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """Embedding (h, w, c) -> logits of both stages; prompts are ignored."""
        asked = prompts if self.is_initializing() else None
        sparse, present, dense = self.prompt_encoder(asked)
        positions = self.prompt_encoder.image_positions()
        first, _, stage = self.mask_decoder(embedding, positions, sparse, dense, present)
        logits = self.second_decoder(embedding + dense[0], positions, first[0], stage)
        earlier = resize(rearrange(first[0], "m h w -> h w m"), logits.shape[1:])
        return Prediction(logits, earlier=rearrange(earlier, "h w m -> m h w").astype(jnp.float32))


def to_h_sam(model: Model, params: Params, seed: int = 0) -> tuple[Model, Params]:
    """Add a second decoder to a SAM without prompts; its logits are as fine as the image.

    Args:
        model: a SAM without prompts, see ``to_semantic``.
        params: of it; may be traced.
        seed: of the second decoder.

    Returns:
        (model, its parameters).

    Raises:
        NotConvertible: another model.

    References:
        Cheng et al. 2024, https://arxiv.org/abs/2403.18271
    """
    root = sam_of(model, "semantic", "H-SAM")
    scale = max(4, 2 ** ((root.spec.input_size // root.spec.embedding[0]).bit_length() - 1))
    spec = replace(root.spec, logits_shape=scale * root.spec.embedding[0])
    return grow(as_kind(HSam, root, spec=spec, stages=True), params, seed)
