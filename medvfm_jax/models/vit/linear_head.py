"""Segmentation by a plain vision transformer and one linear layer: every patch is classified, logits are enlarged.

Source: Strudel et al. 2021 (Segmenter), section 3.2, the linear decoder, https://arxiv.org/abs/2105.05633.
"""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.prompt_free import MOST_CLASSES, NotConvertible
from medvfm_jax.models.sam.root import as_model
from medvfm_jax.models.vit.modules import ViT, ViTConfig, patch_map
from medvfm_jax.types import ModelSpec, Params, Prediction

ENLARGED = 4  # logits along one side of a patch


class LinearHead(nn.Module):
    """Patch tokens (h, w, c) -> logits (classes, 4h, 4w)."""

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        zeros = nn.initializers.zeros
        logits = nn.Dense(self.classes, kernel_init=zeros, dtype=self.dtype, name="head")(tokens)
        size = tuple(ENLARGED * side for side in tokens.shape[:2])
        return rearrange(resize(logits, size, "bilinear"), "h w classes -> classes h w")


class LinearSegmenter(nn.Module):
    """Root module: a plain ViT below ``image_encoder``, its linear layer as ``mask_decoder/head``."""

    config: ViTConfig
    spec: ModelSpec

    def setup(self) -> None:
        self.image_encoder = ViT(self.config)
        self.mask_decoder = LinearHead(self.spec.classes, self.config.dtype)

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> patch tokens (h, w, c)."""
        return patch_map(self.config, self.image_encoder(image), image.shape[0])

    def decode(self, embedding: Array, prompts: None = None, multimask: bool = False) -> Prediction:
        """Patch tokens (h, w, c) -> logits (classes, 4h, 4w); there are no prompts."""
        return Prediction(self.mask_decoder(embedding))

    def __call__(self, image: Array, prompts: None = None, multimask: bool = False) -> Prediction:
        """Decode of encode."""
        return self.decode(self.encode(image))


def with_linear_head(model: Model, params: Params, classes: int) -> tuple[Model, Params]:
    """Make a plain ViT, DINOv2 or the image tower of CLIP a semantic model: a linear layer classifies its patches.

    What does not belong to the image tower is left out.

    Args:
        model: of features, with a plain ViT.
        params: its parameters; may be traced.
        classes: outputs, background included.

    Returns:
        (semantic model whose ``decode`` gives logits (classes, 4h, 4w), its parameters).

    Raises:
        NotConvertible: another kind of model, fewer than two classes or too many.

    References:
        Strudel et al. 2021 (Segmenter), section 3.2, https://arxiv.org/abs/2105.05633
        Interpretation: the layer starts at zero, so that no seed matters to it; logits are enlarged four times, as
        SAM's masks are beside its embedding, and not to the whole picture, which predictions are brought to anyway.
    """
    config = getattr(model.root, "image_config", None)
    if not isinstance(config, ViTConfig):
        raise NotConvertible(
            f"A linear layer is put behind the patches of a plain ViT, and '{model.spec.name}' is another model."
        )
    if type(classes) is not int or not 2 <= classes <= MOST_CLASSES:
        raise NotConvertible(
            f"A semantic model needs from 2 to {MOST_CLASSES} classes with the background, not {classes!r:.80}."
        )
    grid = model.spec.embedding[0]
    spec = replace(model.spec, task="semantic", classes=classes, logits_shape=ENLARGED * grid)
    layer = {"kernel": jnp.zeros((config.dim, classes)), "bias": jnp.zeros((classes,))}
    parts = {"image_encoder": params["params"]["image_encoder"], "mask_decoder": {"head": layer}}
    return as_model(LinearSegmenter(config, spec)), {**params, "params": parts}
