"""Segment Anything as one root module, whatever its image encoder, and as a ``Model``."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.efficient_prompt_encoder import EfficientPromptEncoder
from medvfm_jax.models.sam.mask_decoder import MaskDecoder
from medvfm_jax.models.sam.prompt_encoder import PromptEncoder
from medvfm_jax.types import ModelSpec, Params, Prediction, Prompts

MASKS = 4  # mask tokens of the promptable model


class Sam(nn.Module):
    """Image (S, S, 3) and prompts -> masks; submodules image_encoder, prompt_encoder, mask_decoder.

    classes: 0 for the promptable model; otherwise the prompt-free one with that many outputs.
    efficient: prompt encoder and mask decoder as EfficientSAM has them.
    doublings, stages: see ``MaskDecoder``.
    """

    encoder: nn.Module
    spec: ModelSpec
    classes: int = 0
    decoder_hidden: int = 2048
    doublings: int = 2
    stages: bool = False
    dtype: Any = jnp.float32
    efficient: bool = False

    def setup(self) -> None:
        dim, grid = self.spec.embedding[-1], self.spec.embedding[:2]
        self.image_encoder = self.encoder.clone(parent=None)
        self.prompt_encoder = self.new_prompt_encoder(dim, grid)
        self.mask_decoder = MaskDecoder(
            dim,
            self.classes or MASKS,
            hidden=self.decoder_hidden,
            all_masks=bool(self.classes),
            doublings=self.doublings,
            stages=self.stages,
            dtype=self.dtype,
            efficient=self.efficient,
        )

    def new_prompt_encoder(self, dim: int, grid: tuple[int, int]) -> PromptEncoder:
        """The module that becomes ``prompt_encoder``."""
        kind = EfficientPromptEncoder if self.efficient else PromptEncoder
        return kind(dim, self.spec.input_size, grid, dtype=self.dtype)

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> embedding (h, w, c)."""
        return self.image_encoder(image)

    def visible(self, image: Array, kept: Array) -> Array:
        """Image (S, S, 3) and the numbers of the tokens that are seen -> those tokens (n, dim), before the neck."""
        return self.image_encoder(image, kept)

    def decode(self, embedding: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """Embedding and prompts -> Prediction; ``multimask`` selects masks 1-3 instead of mask 0."""
        # The prompt-free model uses none, yet keeps the parameters, those of mask prompts included.
        asked = None if self.classes and not self.is_initializing() else prompts
        sparse, present, dense = self.prompt_encoder(asked)
        positions = self.prompt_encoder.image_positions()
        logits, iou = self.mask_decoder(embedding, positions, sparse, dense, present, multimask)
        return Prediction(logits[0]) if self.classes else Prediction(logits, iou)

    def __call__(self, image: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """Decode of encode."""
        return self.decode(self.encode(image), prompts, multimask)


def as_model(sam: Sam) -> Model:
    """The pure functions of a root module."""
    low = tuple(4 * side for side in sam.spec.embedding[:-1])

    def encode(params: Params, image: Array, **kw: Any) -> Array:
        return sam.apply(params, image, **{"method": "encode", **kw})

    def decode(
        params: Params, embedding: Array, prompts: Prompts | None = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return sam.apply(params, embedding, prompts, multimask, **{"method": "decode", **kw})

    def apply(
        params: Params, image: Array, prompts: Prompts | None = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return sam.apply(params, image, prompts, multimask, **kw)

    def initialise(key: Array) -> Params:
        # With a mask, so that the layers that only mask prompts reach are there too.
        points, labels = jnp.zeros((1, 1, len(low))), jnp.zeros((1, 1), jnp.int32)
        prompts = Prompts(
            points, labels, None if getattr(sam, "efficient", False) else jnp.zeros((1, *low, 1))
        )
        return sam.init(_light_key(key), jnp.zeros(sam.spec.input_shape, jnp.float32), prompts)

    # Compiled, the forward pass that Linen runs to find the parameters is dropped as unused.
    init = jax.jit(initialise)
    return Model(encode, decode, apply, init, sam.spec, sam)


def _light_key(key: Array) -> Array:
    """The key for a generator whose hundreds of draws compile several times as fast as threefry's.

    Its numbers depend on the backend, which initial weights may.
    """
    data = jax.random.key_data(key)
    return jax.random.wrap_key_data(jnp.concatenate([data, data])[:4], impl="unsafe_rbg")
