"""Segment Anything as one root module, whatever its image encoder, and as a ``Model``."""

import dataclasses
from math import prod
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.mask_decoder import MaskDecoder
from medvfm_jax.models.model import Model
from medvfm_jax.models.prompt_encoder import PromptEncoder
from medvfm_jax.types import ModelSpec, Params, Prediction, Prompts


class Sam(nn.Module):
    """Image (S, S, 3) and prompts -> masks; submodules image_encoder, prompt_encoder, mask_decoder.

    classes: 0 for the promptable model; otherwise the prompt-free one with that many outputs.
    """

    encoder: nn.Module
    spec: ModelSpec
    classes: int = 0
    mlp_dim: int = 2048
    dtype: Any = jnp.float32

    def setup(self) -> None:
        dim = self.spec.embedding[-1]
        self.image_encoder = self.encoder.clone(parent=None)
        self.prompt_encoder = PromptEncoder(
            self.spec.input_size, self.spec.embedding[0], dim, dtype=self.dtype
        )
        masks = self.classes or 4
        self.mask_decoder = MaskDecoder(dim, masks, mlp_dim=self.mlp_dim, dtype=self.dtype)

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> embedding (h, w, c)."""
        return self.image_encoder(image)

    def decode(self, embedding: Array, prompts: Prompts | None, multimask: bool = False) -> Prediction:
        """Embedding and prompts -> Prediction; multimask selects masks 1-3 instead of mask 0."""
        prediction = self.mask_decoder(embedding, self.prompt_encoder(prompts))
        if self.classes:
            return Prediction(prediction.logits[0])
        chosen = slice(1, None) if multimask else slice(0, 1)
        return Prediction(prediction.logits[:, chosen], prediction.iou[:, chosen])

    def __call__(self, image: Array, prompts: Prompts | None, multimask: bool = False) -> Prediction:
        """Decode of encode."""
        return self.decode(self.encode(image), prompts, multimask)


def as_model(sam: Sam) -> Model:
    """The pure functions of a root module; the parameter count of its spec is filled in."""
    size = sam.spec.input_size

    def encode(params: Params, image: Array, **kw: Any) -> Array:
        return sam.apply(params, image, method="encode", **kw)

    def decode(params: Params, embedding: Array, prompts: Any, multimask: bool = False, **kw: Any):
        return sam.apply(params, embedding, prompts, multimask, method="decode", **kw)

    def apply(params: Params, image: Array, prompts: Any, multimask: bool = False, **kw: Any):
        return sam.apply(params, image, prompts, multimask, **kw)

    def init(key: Array) -> Params:
        return sam.init(key, jnp.zeros((size, size, 3), jnp.float32), None)

    shapes = jax.eval_shape(init, jax.random.key(0))
    count = sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    return Model(encode, decode, apply, init, dataclasses.replace(sam.spec, parameters=count), sam)
