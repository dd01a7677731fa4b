"""SAM 2 for images as one root module; ``sam.root.as_model`` makes its ``Model``."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.sam.root import MASKS
from medvfm_jax.models.sam2.encoder import unpack
from medvfm_jax.models.sam2.mask_decoder import MaskDecoder, chosen
from medvfm_jax.models.sam2.prompt_encoder import Sam2PromptEncoder, with_padding
from medvfm_jax.types import ModelSpec, Prediction, Prompts


class Sam2(nn.Module):
    """Image (S, S, 3) and prompts -> masks; submodules image_encoder, prompt_encoder, mask_decoder.

    classes: 0 for the promptable model; otherwise the prompt-free one with that many outputs.
    """

    encoder: nn.Module
    spec: ModelSpec
    classes: int = 0
    decoder_hidden: int = 2048
    dtype: Any = jnp.float32

    def setup(self) -> None:
        dim, grid = self.encoder.config.out_features, self.spec.embedding[:2]
        self.image_encoder = self.encoder.clone(parent=None)
        self.prompt_encoder = Sam2PromptEncoder(dim, self.spec.input_size, grid, dtype=self.dtype)
        self.mask_decoder = MaskDecoder(
            dim,
            self.classes or MASKS,
            hidden=self.decoder_hidden,
            quality=not self.classes,
            dtype=self.dtype,
        )

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> embedding (h, w, 4 c) of three levels, see ``encoder.unpack``."""
        return self.image_encoder(image)

    def decode(
        self,
        embedding: Array,
        prompts: Prompts | None = None,
        multimask: bool = False,
        training: bool = False,
    ) -> Prediction:
        """Embedding and prompts -> Prediction; ``multimask`` gives masks 1-3 instead of one, see ``chosen``."""
        # The prompt-free model uses none, yet keeps the parameters, those of mask prompts included.
        asked = None if self.classes and not self.is_initializing() else with_padding(prompts)
        sparse, present, dense = self.prompt_encoder(asked)
        positions = self.prompt_encoder.image_positions()
        found = self.mask_decoder(unpack(embedding), positions, sparse, dense, present)
        if self.classes:
            return Prediction(found.logits[0])
        found = chosen(found, multimask, training)
        return Prediction(found.logits, found.iou, found.object_score)

    def __call__(
        self, image: Array, prompts: Prompts | None = None, multimask: bool = False, training: bool = False
    ) -> Prediction:
        """Decode of encode."""
        return self.decode(self.encode(image), prompts, multimask, training)
