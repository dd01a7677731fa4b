"""MISSFormer: a U-Net of transformer blocks with convolutions inside, and a bridge over the tokens of all scales.

The encoder is that of SegFormer: overlapping patches of 4 pixels, then of 2 places, with transformer blocks behind each
of which keys and values are reduced.  Its perceptrons are enhanced mix-FFNs.  In the bridge all scales, cut into tokens
of the narrowest width, attend to each other.  The decoder begins at the coarsest scale: blocks, then a patch expansion
that doubles the side and halves the width, whose result is joined with the next scale; the last one makes single pixels
of patches.  A linear layer classifies.

Interpretation: written from the paper's description; the authors' code has no licence and is not followed.  Widths,
heads and reductions are those of SegFormer's MiT-B1; every stage has two blocks, the decoder's coarsest too; one
recursion step in a mix-FFN, four hidden units per channel; the bridge has four layers, one head, and reduces every
scale to the size of the coarsest; a linear layer brings joined maps to the stage's width; the norms lie before
attention and mix-FFN.  With 9 classes that makes 41,806,665 parameters, where 42.46 million are published.  As many as
that they are with two more norms in every mix-FFN (131,072), as three recursion steps have them, and a layer from 1024
to 512 channels before the decoder's coarsest stage (524,800), where nothing is to be joined: 42,462,537.

Source: Huang et al. 2021, "MISSFormer: An Effective Medical Image Segmentation Transformer" (arXiv 2109.07162),
section 3; Xie et al. 2021, "SegFormer" (arXiv 2105.15203), section 3.1, for the encoder; Cao et al. 2022, "Swin-Unet"
(arXiv 2105.05537), section 3.5, for patch expansion.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.context_bridge import BridgeLayer
from medvfm_jax.models.context.mix_ffn import MixFFN
from medvfm_jax.models.context.tokens import TokenAttention, to_map, to_tokens
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.layers import layer_norm
from medvfm_jax.models.semantic import Classifier
from medvfm_jax.models.swin_unet.modules import PatchExpand

NORM_EPSILON = 1e-6
PATCH = 4  # pixels of a place of the finest map, along one side


@dataclass(frozen=True)
class MissFormerConfig:
    """Static shape of a MISSFormer; tuples are of the stages, the finest first.

    heads: of a block.  blocks: of every stage of the encoder and of the decoder.  bridge: layers of it.  ratio: hidden
    units of a mix-FFN per channel.
    """

    classes: int
    widths: tuple[int, ...] = (64, 128, 320, 512)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    blocks: int = 2
    bridge: int = 4
    ratio: int = 4
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per place of the coarsest map, along one side."""
        return PATCH * self.window(0)

    def window(self, stage: int) -> int:
        """Places of a stage per place of the coarsest, along one side: what keys and values are reduced by."""
        return 2 ** (len(self.widths) - 1 - stage)


class OverlapPatches(nn.Module):
    """Convolution whose window overlaps and a norm: x (h, w, c) -> (h/stride, w/stride, features)."""

    features: int
    kernel: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, pad = (self.kernel,) * 2, (self.kernel // 2,) * 2
        x = Conv(self.features, size, self.stride, (pad, pad), dtype=self.dtype, name="proj")(x)
        return layer_norm("norm", NORM_EPSILON, self.dtype)(x)


class EnhancedBlock(nn.Module):
    """Attention to a reduced map and an enhanced mix-FFN, each with norm and residual: x (h, w, c) -> (h, w, c).

    window: places of x per key and value, along one side; a convolution with that stride and a norm make them.

    References:
        Huang et al. 2021 (MISSFormer), section 3.2, https://arxiv.org/abs/2109.07162
        Xie et al. 2021 (SegFormer), equation 2, https://arxiv.org/abs/2105.15203
    """

    heads: int
    window: int
    ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels, keys = x.shape[-1], layer_norm("norm", NORM_EPSILON, self.dtype)(x)
        queries = to_tokens(keys)
        if self.window > 1:
            conv = PatchConv(channels, (self.window,) * 2, self.window, dtype=self.dtype, name="reduce")
            keys = layer_norm("key_norm", NORM_EPSILON, self.dtype)(conv(keys))
        attention = TokenAttention(channels, self.heads, self.dtype, name="attn")
        x = x + to_map(attention(queries, to_tokens(keys)), x.shape[:2])
        return x + MixFFN(self.ratio * channels, zero_init=False, dtype=self.dtype, name="ffn")(x)


class MissFormerBody(nn.Module):
    """Image (S, S, 3) -> features (S, S, widths[0])."""

    config: MissFormerConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, dtype, widths = self.config, self.config.dtype, self.config.widths
        maps, x = [], image.astype(dtype)
        for i, width in enumerate(widths):
            kernel, stride = (3, 2) if i else (2 * PATCH - 1, PATCH)
            x = OverlapPatches(width, kernel, stride, dtype, name=f"patches_{i}")(x)
            x = self._blocks("down", i, x)
            x = layer_norm(f"norm_{i}", NORM_EPSILON, dtype)(x)
            maps.append(x)
        for layer in range(config.bridge):
            bridge = BridgeLayer(
                ratio=config.ratio, heads=config.heads[0], dtype=dtype, name=f"bridge_{layer}"
            )
            maps = bridge(maps)
        x = self._blocks("up", len(widths) - 1, maps[-1])
        for i in reversed(range(len(widths) - 1)):
            x = PatchExpand(widths[i + 1] // 2, dtype=dtype, name=f"expand_{i}")(x)
            joined = jnp.concatenate([x, maps[i]], axis=-1)
            x = self._blocks("up", i, nn.Dense(widths[i], dtype=dtype, name=f"join_{i}")(joined))
        return PatchExpand(widths[0], PATCH, dtype, name="expand")(x)

    def _blocks(self, way: str, stage: int, x: Array) -> Array:
        """The blocks of a stage on the way down or up, x (h, w, c) -> same; in a compact call."""
        config = self.config
        shape = (config.heads[stage], config.window(stage), config.ratio, config.dtype)
        for i in range(config.blocks):
            x = EnhancedBlock(*shape, name=f"{way}_{stage}_block_{i}")(x)
        return x


class MissFormer(EncoderDecoder):
    """Root module: image (S, S, 3) -> logits (classes, S, S)."""

    config: MissFormerConfig

    def setup(self) -> None:
        self.image_encoder = MissFormerBody(self.config)
        self.mask_decoder = Classifier(self.config.classes, dtype=self.config.dtype)
