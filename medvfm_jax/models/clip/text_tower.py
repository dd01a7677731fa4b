"""CLIP's text tower: a transformer in which a token sees only what stands before it.

Parameter paths below ``text_encoder``: ``token_embedding/embedding``, ``pos_embed``, ``blocks_0/...`` as in a
plain ViT, ``norm``.

Source: Radford et al. 2021 (CLIP), section 2.4.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.layers import layer_norm
from medvfm_jax.models.vit.modules import ViTConfig, in_blocks


@dataclass(frozen=True)
class TextConfig:
    """Static shape of a text tower; blocks: width, depth, heads and form of its blocks."""

    blocks: ViTConfig
    vocabulary: int = 49_408
    context: int = 77  # most tokens of a text, start and end included


class TextTower(nn.Module):
    """Token ids (n,) -> features (dim,) of the end of the text, after the final norm.

    The end-of-text token has the highest id of the vocabulary, so its first occurrence is where ids are largest; what
    stands behind it, padding, is seen by nothing before it.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        config, blocks = self.config, self.config.blocks
        options = {"embedding_init": nn.initializers.normal(0.02), "dtype": blocks.dtype}
        words = nn.Embed(config.vocabulary, blocks.dim, **options, name="token_embedding")
        positions = self.param("pos_embed", nn.initializers.normal(0.01), (config.context, blocks.dim))
        x = words(tokens) + positions[: tokens.shape[0]].astype(blocks.dtype)
        x = layer_norm("norm", blocks.norm_eps, blocks.dtype)(in_blocks(blocks, x))
        return x[jnp.argmax(tokens)]
