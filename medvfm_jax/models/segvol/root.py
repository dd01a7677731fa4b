"""SegVol as one root module; ``sam.root.as_model`` makes its ``Model``.

Source: BAAI-DCAI/SegVol, ``network/model.py``, ``segment_anything_volumetric/build_sam.py``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.sam.root import MASKS, Sam
from medvfm_jax.models.segvol.mask_decoder import SegVolMaskDecoder
from medvfm_jax.models.segvol.prompt_encoder import SegVolPromptEncoder
from medvfm_jax.models.unetr.transformer import Transformer, TransformerConfig
from medvfm_jax.types import Prediction, Prompts


class Encoder(nn.Module):
    """Window of a volume (D, H, W, 1) -> embedding (d, h, w, c)."""

    config: TransformerConfig

    def setup(self) -> None:
        self.vit = Transformer(self.config)

    def __call__(self, volume: Array) -> Array:
        return self.vit(volume.astype(self.config.dtype))[-1]


class SegVol(Sam):
    """Window of a volume (D, H, W, 1) and prompts -> masks (Q, M, D, H, W), or (classes, D, H, W) without prompts.

    ``decode`` and the call take one argument more than those of other models: ``text`` (Q, text_features), the pooled
    output of CLIP's text encoder for "A computerized tomography of a {organ}.", one for each prompt.  With text,
    ``prompts`` may be None.  The decoder's logits are enlarged trilinearly to the window.
    """

    text_features: int = 512

    def setup(self) -> None:
        dim, config = self.spec.embedding[-1], self.encoder.config
        self.image_encoder = self.encoder.clone(parent=None)
        window, grid = self.spec.input_shape[:3], self.spec.embedding[:3]
        options = {"window": window, "text_features": self.text_features, "dtype": self.dtype}
        self.prompt_encoder = SegVolPromptEncoder(dim, self.spec.input_size, grid, **options)
        self.mask_decoder = SegVolMaskDecoder(
            dim,
            self.classes or MASKS,
            hidden=self.decoder_hidden,
            all_masks=bool(self.classes),
            grid=config.grid,
            dtype=self.dtype,
        )

    def decode(
        self,
        embedding: Array,
        prompts: Prompts | None = None,
        multimask: bool = False,
        text: Array | None = None,
    ) -> Prediction:
        """Embedding and prompts -> Prediction; ``multimask`` selects masks 1-3 instead of mask 0."""
        if self.is_initializing():
            text = jnp.zeros((1, self.text_features))
        elif self.classes:  # the prompt-free model uses none, yet keeps the parameters
            prompts = text = None
        sparse, present, dense, direction = self.prompt_encoder(prompts, text)
        positions = self.prompt_encoder.image_positions()
        logits, iou = self.mask_decoder(embedding, positions, sparse, dense, present, multimask, direction)
        sides = (*logits.shape[:2], *self.spec.logits_shape)
        logits = jax.image.resize(logits, sides, "linear", antialias=False)
        return Prediction(logits[0]) if self.classes else Prediction(logits, iou)

    def __call__(
        self,
        image: Array,
        prompts: Prompts | None = None,
        multimask: bool = False,
        text: Array | None = None,
    ) -> Prediction:
        """Decode of encode."""
        return self.decode(self.encode(image), prompts, multimask, text)
