"""SAM 2 as one root module; ``sam.root.as_model`` makes its ``Model``, ``tracker_of`` what follows objects.

Source: facebookresearch/sam2, ``sam2/sam2_image_predictor.py`` and ``sam2/modeling/sam2_base.py``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.root import MASKS
from medvfm_jax.models.sam2.encoder import unpack
from medvfm_jax.models.sam2.mask_decoder import Decoded, MaskDecoder, chosen
from medvfm_jax.models.sam2.memory import Memories, Memory, first_memories, with_frame
from medvfm_jax.models.sam2.prompt_encoder import Sam2PromptEncoder, with_padding
from medvfm_jax.types import PAD, ModelSpec, Params, Prediction, Prompts

NOTHING = -1024.0  # logit of a mask whose object is not there


class Tracked(NamedTuple):
    """One mask for each of Q objects: float32 logits (Q, 4h, 4w), IoU (Q,), object score (Q,)."""

    logits: Array
    iou: Array
    object_score: Array


class Sam2(nn.Module):
    """Image (S, S, 3) and prompts -> masks; submodules image_encoder, prompt_encoder, mask_decoder.

    classes: 0 for the promptable model; otherwise the prompt-free one with that many outputs.
    remembers: with the submodule memory, for propagation through the slices of a volume.
    """

    encoder: nn.Module
    spec: ModelSpec
    classes: int = 0
    decoder_hidden: int = 2048
    remembers: bool = False
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
        if self.remembers:
            self.memory = Memory(dim, self.decoder_hidden, self.dtype)

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
        levels = unpack(embedding)
        found = self.mask_decoder(levels, positions, sparse, dense, present)
        if self.remembers and self.is_initializing():
            self.memory(levels.coarse, found.logits[0, 0], found.tokens[0, 0])
        if self.classes:
            return Prediction(found.logits[0])
        found = chosen(found, multimask, training)
        return Prediction(found.logits, found.iou, found.object_score)

    def __call__(
        self, image: Array, prompts: Prompts | None = None, multimask: bool = False, training: bool = False
    ) -> Prediction:
        """Decode of encode."""
        return self.decode(self.encode(image), prompts, multimask, training)

    def start(self, embedding: Array, prompts: Prompts, multimask: bool) -> tuple[Tracked, Memories]:
        """First frame: embedding (h, w, 4 c), one prompt -> what is found and what is remembered of it."""
        levels = unpack(embedding)
        sparse, present, dense = self.prompt_encoder(with_padding(prompts))
        positions = self.prompt_encoder.image_positions()
        decoded = self.mask_decoder(levels, positions, sparse, dense, present)
        found, frame_map, pointer = self._kept(levels.coarse, chosen(decoded, multimask, False), True)
        return found, first_memories(frame_map, pointer)

    def follow(self, embedding: Array, memories: Memories, frames: int) -> tuple[Tracked, Memories]:
        """Next frame of ``frames``: embedding (h, w, 4 c), memories of one object -> what is found, memories."""
        levels = unpack(embedding)
        # As in the release: a question without points is one padding point, beside the one that is always there.
        nothing = Prompts(jnp.zeros((1, 2, 2)), jnp.full((1, 2), PAD))
        sparse, present, dense = self.prompt_encoder(nothing)
        seen = levels._replace(coarse=self.memory.recall(levels.coarse, memories, frames))
        positions = self.prompt_encoder.image_positions()
        decoded = self.mask_decoder(seen, positions, sparse, dense, present, remembering=True)
        found, frame_map, pointer = self._kept(levels.coarse, chosen(decoded, True, False), False)
        return found, with_frame(memories, frame_map, pointer)

    def _kept(self, coarse: Array, decoded: Decoded, prompted: bool) -> tuple[Tracked, Array, Array]:
        """Masks of one object -> the best of them, and map and pointer to remember it by."""
        best, score = decoded.iou[0].argmax(), decoded.object_score[0]
        logits = jnp.where(score > 0, decoded.logits[0, best], NOTHING)
        frame_map = self.memory.remember(coarse, logits, score, prompted)
        pointer = self.memory.pointer(decoded.tokens[0, best], score)
        return Tracked(logits, decoded.iou[0, best], score), frame_map, pointer


class Tracker(NamedTuple):
    """Pure functions that follow objects from frame to frame; memories have a leading axis of objects.

    start: (params, embedding, prompts, multimask) -> Tracked, Memories.  follow: (params, embedding, memories, frames)
    -> Tracked, Memories.
    """

    start: Callable[..., tuple[Tracked, Memories]]
    follow: Callable[..., tuple[Tracked, Memories]]


def tracker_of(model: Model) -> Tracker:
    """What follows objects, of a SAM 2 built with ``memory=True``.

    Args:
        model: promptable.

    Returns:
        The functions.

    Raises:
        BadModelOption: a model without memory.
    """
    sam = model.root
    if not getattr(sam, "remembers", False):
        raise BadModelOption(f"{model.spec.name} has no memory; build a SAM 2 with memory=True.")

    def start(params: Params, embedding: Array, prompts: Prompts, multimask: bool) -> Any:
        def one(prompt: Prompts) -> Any:
            alone = jax.tree.map(lambda x: x[None], prompt)
            return sam.apply(params, embedding, alone, multimask, method="start")

        return jax.vmap(one)(prompts)

    def follow(params: Params, embedding: Array, memories: Memories, frames: int) -> Any:
        return jax.vmap(lambda one: sam.apply(params, embedding, one, frames, method="follow"))(memories)

    return Tracker(start, follow)
