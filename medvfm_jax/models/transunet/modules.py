"""TransUNet: a ResNet, a ViT over its coarsest map, and a decoder that doubles the side and joins the ResNet's maps.

Every place of the map at 1/16 of the side is a token with a learned position.  Behind the last block, a 3x3 convolution
brings the tokens to 512 channels; then four times the side is doubled, the ResNet's map of that side is joined (the
last time there is none), and two 3x3 convolutions follow.  A 3x3 convolution classifies.

Norms over one image stand for the decoder's batch norms, as elsewhere in networks that are trained from scratch here:
un-batched calls, ``vmap`` and training agree, and the numbers are those of the release in training on batches of one
image.  There is no dropout.

Source: Chen et al. 2021, "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation"
(arXiv 2102.04306), sections 3.1 and 3.2; Beckschen/TransUNet (Apache-2.0), ``networks/vit_seg_modeling.py`` and
``networks/vit_seg_configs.py`` (R50-ViT-B_16), for sizes that the paper leaves open.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.hiformer.resnet import ConvNorm
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import layer_norm
from medvfm_jax.models.semantic import Classifier
from medvfm_jax.models.transunet.resnet import HybridConfig, HybridResNet
from medvfm_jax.models.vit.modules import ViTConfig, in_blocks

_RESNET_50, _VIT_B = HybridConfig(), ViTConfig(768, 12, 12)
REDUCTION = 16  # pixels of the image per token, along one side


@dataclass(frozen=True)
class TransUnetConfig:
    """Static shape of a TransUNet; middle: channels that tokens are brought to; up: channels after each doubling."""

    classes: int
    resnet: HybridConfig = _RESNET_50
    vit: ViTConfig = _VIT_B
    middle: int = 512
    up: tuple[int, int, int, int] = (256, 128, 64, 16)

    @property
    def dtype(self) -> Any:
        """Of the computation."""
        return self.vit.dtype


class TokenEncoder(nn.Module):
    """The ViT over a map: x (h, w, c) -> (h, w, dim), normalised."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        x = nn.Dense(config.dim, dtype=config.dtype, name="patch_embed")(x)
        grid, x = x.shape[:2], rearrange(x, "h w c -> (h w) c")
        x = x + self.param("pos_embed", nn.initializers.zeros, x.shape).astype(config.dtype)
        x = layer_norm("norm", config.norm_eps, config.dtype)(in_blocks(config, x))
        return rearrange(x, "(h w) c -> h w c", h=grid[0])


class TransUnetBody(nn.Module):
    """Image (S, S, 3) -> features (S, S, up[-1])."""

    config: TransUnetConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, dtype = self.config, self.config.dtype
        *skips, x = HybridResNet(config.resnet, name="resnet")(image)
        x = TokenEncoder(config.vit, name="vit")(x)
        x = nn.relu(ConvNorm(config.middle, dtype=dtype, name="middle")(x))
        for i, features in enumerate(config.up):
            x = resize(x, (2 * x.shape[0], 2 * x.shape[1]), "aligned")
            if skips:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            for j in range(2):
                x = nn.relu(ConvNorm(features, dtype=dtype, name=f"up_{i}_conv_{j}")(x))
        return x


class TransUnet(EncoderDecoder):
    """Root module: image (S, S, 3) -> logits (classes, S, S)."""

    config: TransUnetConfig

    def setup(self) -> None:
        self.image_encoder = TransUnetBody(self.config)
        self.mask_decoder = Classifier(self.config.classes, 3, dtype=self.config.dtype)
