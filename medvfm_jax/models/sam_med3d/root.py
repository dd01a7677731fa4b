"""SAM-Med3D as one root module; ``sam.root.as_model`` makes its ``Model``.

Source: uni-medical/SAM-Med3D, ``segment_anything/build_sam3D.py``, ``utils/infer_utils.py``.
"""

import jax
from jax import Array

from medvfm_jax.models.sam.root import MASKS, Sam
from medvfm_jax.models.sam2.prompt_encoder import with_padding
from medvfm_jax.models.sam_med3d.mask_decoder import MaskDecoder3d
from medvfm_jax.models.sam_med3d.prompt_encoder import PromptEncoder3d
from medvfm_jax.types import Prediction, Prompts


class SamMed3d(Sam):
    """Patch of a volume (D, H, W, 1) and prompts -> masks (Q, M, D, H, W), or (classes, D, H, W) without prompts.

    The decoder's logits have a quarter of the patch's sides and are enlarged trilinearly, as the release does outside
    of the model.
    """

    def setup(self) -> None:
        dim, grid = self.spec.embedding[-1], self.spec.embedding[:3]
        self.image_encoder = self.encoder.clone(parent=None)
        self.prompt_encoder = PromptEncoder3d(dim, self.spec.input_size, grid, dtype=self.dtype)
        self.mask_decoder = MaskDecoder3d(
            dim,
            self.classes or MASKS,
            hidden=self.decoder_hidden,
            all_masks=bool(self.classes),
            dtype=self.dtype,
        )

    def encode(self, volume: Array) -> Array:
        """Patch (D, H, W, 1) -> embedding (D/16, H/16, W/16, c)."""
        return self.image_encoder(volume)

    def decode(self, embedding: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """Embedding and prompts -> Prediction; ``multimask`` selects masks 1-3 instead of mask 0."""
        # The prompt-free model uses none, yet keeps the parameters, those of mask prompts included.
        asked = None if self.classes and not self.is_initializing() else with_padding(prompts)
        sparse, present, dense = self.prompt_encoder(asked)
        positions = self.prompt_encoder.image_positions()
        logits, iou = self.mask_decoder(embedding, positions, sparse, dense, present, multimask)
        sides = (*logits.shape[:2], *self.spec.logits_shape)
        logits = jax.image.resize(logits, sides, "linear", antialias=False)
        return Prediction(logits[0]) if self.classes else Prediction(logits, iou)
