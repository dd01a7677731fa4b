"""Swin-Unet: a U-Net whose halvings, doublings and layers are those of a Swin Transformer, without any convolution.

The encoder is a Swin Transformer of two blocks per stage.  The decoder doubles the side by patch expanding, joins the
encoder's map of the same side, and ends with an expansion by the size of a patch.  The whole U lies below
``image_encoder``, in which the encoder has the paths of ``models.swin``; the classifier is ``mask_decoder/head``.

Interpretation: the paper gives no code of layers.  Encoder and decoder have two blocks per stage, as its figure 1
shows; expanding layers have no bias and end with a norm, as merging has no bias and begins with one; a linear layer
brings joined maps back to their width; one more norm lies before the last expansion; the classifier has no bias.  With
9 classes that makes 27,168,900 parameters, the 27.17 million that are published for Swin-Unet.

Source: Cao et al. 2022, "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation" (arXiv 2105.05537),
sections 3.1 to 3.6.  Written from the paper alone.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.layers import layer_norm
from medvfm_jax.models.semantic import Classifier
from medvfm_jax.models.swin.modules import NORM_EPSILON, Stage, Swin, SwinConfig

_TWO_PER_STAGE = SwinConfig(depths=(2, 2, 2, 2))


@dataclass(frozen=True)
class SwinUnetConfig:
    """Static shape of a Swin-Unet; up: blocks of the decoder's stages, the finest first."""

    classes: int
    swin: SwinConfig = _TWO_PER_STAGE
    up: tuple[int, ...] = (2, 2, 2)

    @property
    def dtype(self) -> Any:
        """Of the computation."""
        return self.swin.dtype


class PatchExpand(nn.Module):
    """Every token becomes ``factor`` x ``factor`` tokens, x (h, w, c) -> (h factor, w factor, features), normalised."""

    features: int
    factor: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = self.features * self.factor**2
        x = nn.Dense(width, use_bias=False, dtype=self.dtype, name="expand")(x)
        x = rearrange(x, "h w (row column c) -> (h row) (w column) c", row=self.factor, column=self.factor)
        return layer_norm("norm", NORM_EPSILON, self.dtype)(x)


class SwinUnetBody(nn.Module):
    """Image (S, S, 3) -> features (S, S, dim) through the stages of a Swin Transformer and back."""

    config: SwinUnetConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        swin, dtype = self.config.swin, self.config.dtype
        *skips, x = Swin(swin, name="encoder")(image)
        for i in reversed(range(len(skips))):
            x = PatchExpand(swin.width(i), dtype=dtype, name=f"expand_{i}")(x)
            joined = jnp.concatenate([x, skips[i]], axis=-1)
            x = nn.Dense(swin.width(i), dtype=dtype, name=f"join_{i}")(joined)
            shape = (self.config.up[i], swin.heads[i], swin.window, False, swin.mlp_ratio, dtype)
            x, _ = Stage(*shape, name=f"up_{i}")(x)
        x = layer_norm("norm", NORM_EPSILON, dtype)(x)
        return PatchExpand(swin.dim, swin.patch_size, dtype, name="expand")(x)


class SwinUnet(EncoderDecoder):
    """Root module: image (S, S, 3) -> logits (classes, S, S)."""

    config: SwinUnetConfig

    def setup(self) -> None:
        self.image_encoder = SwinUnetBody(self.config)
        self.mask_decoder = Classifier(self.config.classes, use_bias=False, dtype=self.config.dtype)
