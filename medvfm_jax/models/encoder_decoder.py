"""Networks in two parts, an encoder and what makes logits of its features: their root module, and their ``Model``."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medvfm_jax.models.model import Model
from medvfm_jax.types import ModelSpec, Params, Prediction


class EncoderDecoder(nn.Module):
    """Root module; its ``setup`` makes ``image_encoder`` (image or volume -> features) and ``mask_decoder``."""

    def encode(self, image: Any) -> Any:
        """Image or volume, channels last -> features."""
        return self.image_encoder(image)

    def decode(self, features: Any) -> Prediction:
        """Features -> Prediction with logits, classes first."""
        return Prediction(self.mask_decoder(features))

    def __call__(self, image: Any) -> Prediction:
        return self.decode(self.encode(image))


def encoder_decoder_model(root: nn.Module, spec: ModelSpec) -> Model:
    """The functions of a root module that has ``encode``, ``decode`` and ``__call__``; prompts are ignored."""

    def encode(params: Params, image: Any, **kw: Any) -> Any:
        return root.apply(params, image, **{"method": "encode", **kw})

    def decode(
        params: Params, embedding: Any, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return root.apply(params, embedding, **{"method": "decode", **kw})

    def apply(
        params: Params, image: Any, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return root.apply(params, image, **kw)

    # Compiled, the forward pass that Linen runs to find the parameters is dropped as unused.
    init = jax.jit(lambda key: root.init(key, jnp.zeros(spec.input_shape, jnp.float32)))
    return Model(encode, decode, apply, init, spec)
