"""HiFormer: a ResNet whose maps enter the stages of a Swin Transformer, and two levels that exchange class tokens.

The maps at 1/4, 1/8 and 1/16 of the side, brought to the transformer's widths, are added to the output of its stages;
the first of them takes the place of its patches.  The finest level and the coarsest, each with the average of its
normalised tokens as a class token, go through the Double-Level Fusion module: the class token of one level attends to
the tokens of the other and comes back, then a transformer encoder runs over each level.  Convolutions bring both levels
to one map at 1/4 of the side, whose sum is classified.

Interpretation: in the release the encoders that follow the exchange are computed and their result is thrown away
(``MultiScaleBlock.forward`` returns what it had before); here they take part, as the paper describes.  Batch norms of
the ResNet are replaced by norms over one image, see ``hiformer.resnet``.

Source: Heidari et al. 2023, "HiFormer: Hierarchical Multi-scale Representations Using Transformers for Medical Image
Segmentation" (arXiv 2207.08518), sections 3.1 to 3.3; amirhossein-kz/HiFormer (MIT), ``models/Encoder.py``,
``models/Decoder.py`` and ``utils.py``, for sizes that the paper leaves open; Chen et al. 2021, CrossViT
(arXiv 2103.14899), for cross-attention.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import attend, attend_in_steps
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.hiformer.resnet import ResNet, ResNetConfig
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import MlpBlock, gelu, layer_norm
from medvfm_jax.models.semantic import Classifier
from medvfm_jax.models.swin.modules import NORM_EPSILON, PatchMerging, Stage, SwinConfig

REDUCTION = 16  # pixels of the image per token of the coarsest level, along one side


@dataclass(frozen=True)
class HiFormerConfig:
    """Static shape of a HiFormer; pairs are of the finest level and of the coarsest.

    encoders: transformer blocks behind the exchange.  heads: of theirs and of the cross-attention.  mlp_ratio: of
    theirs.  decoded: channels of the map that both levels become.  groups: of the decoder's norms.
    """

    classes: int
    resnet: ResNetConfig
    swin: SwinConfig
    encoders: tuple[int, int]
    heads: tuple[int, int]
    mlp_ratio: tuple[int, int]
    decoded: int = 128
    groups: int = 32
    features: int = 16

    @property
    def dtype(self) -> Any:
        """Of the computation."""
        return self.swin.dtype


class Pyramid(nn.Module):
    """Image (S, S, 3) -> maps at 1/4 and 1/16 of the side with a class token (1, c) each."""

    config: HiFormerConfig

    @nn.compact
    def __call__(self, image: Array) -> list[tuple[Array, Array]]:
        swin, dtype, levels = self.config.swin, self.config.dtype, []
        x = None
        for i, found in enumerate(ResNet(self.config.resnet, name="resnet")(image)):
            found = nn.Dense(swin.width(i), dtype=dtype, name=f"project_{i}")(found)
            shape = (swin.depths[i], swin.heads[i], swin.window, False, swin.mlp_ratio, dtype)
            x = found + Stage(*shape, name=f"layers_{i}")(found if x is None else x)[0]
            if i != 1:
                normalised = layer_norm(f"norm_{i}", NORM_EPSILON, dtype)(x)
                levels.append((normalised.mean((0, 1))[None], x))
            if i < 2:
                x = PatchMerging(dtype, name=f"merge_{i}")(x)
        return levels


class CrossAttention(nn.Module):
    """The class token (1, c), with tokens (n, c) of the other level, after attending to both: (1, c)."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token: Array, others: Array) -> Array:
        channels = token.shape[-1]
        x = layer_norm("norm", NORM_EPSILON, self.dtype)(jnp.concatenate([token, others]))
        q, k, v = (
            rearrange(
                nn.Dense(channels, dtype=self.dtype, name=name)(part),
                "n (heads d) -> heads n d",
                heads=self.heads,
            )
            for name, part in (("query", x[:1]), ("key", x), ("value", x))
        )
        out = attend(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v)
        out = rearrange(out, "heads n d -> n (heads d)")
        return token + nn.Dense(channels, dtype=self.dtype, name="proj")(out)


class Between(nn.Module):
    """Norm, GELU and a linear layer from one level's width to the other's: (1, c) -> (1, features)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token: Array) -> Array:
        x = gelu(layer_norm("norm", NORM_EPSILON, self.dtype)(token))
        return nn.Dense(self.features, dtype=self.dtype, name="proj")(x)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block over all tokens of a level, x (n, c) -> (n, c); the first is the class token."""

    heads: int
    mlp_ratio: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        y = layer_norm("norm1", NORM_EPSILON, self.dtype)(x)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(y)
        q, k, v = rearrange(qkv, "n (three heads d) -> three heads n d", three=3, heads=self.heads)
        q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        # Apart, because the number of tokens without the class token has divisors to cut it into steps.
        out = jnp.concatenate([attend(q[:, :1], k, v), attend_in_steps(q[:, 1:], k, v)], axis=1)
        out = rearrange(out, "heads n d -> n (heads d)")
        x = x + nn.Dense(channels, dtype=self.dtype, name="proj")(out)
        mlp = MlpBlock(self.mlp_ratio * channels, dtype=self.dtype, names=("fc1", "fc2"), name="mlp")
        return x + mlp(layer_norm("norm2", NORM_EPSILON, self.dtype)(x))


class DoubleLevelFusion(nn.Module):
    """Two levels, class token (1, c) and map (h, w, c) each, -> their maps after the exchange, normalised."""

    config: HiFormerConfig

    @nn.compact
    def __call__(self, levels: list[tuple[Array, Array]]) -> list[Array]:
        config, dtype, placed, out = self.config, self.config.dtype, [], []
        for i, (token, x) in enumerate(levels):
            tokens = jnp.concatenate([token, rearrange(x, "h w c -> (h w) c")])
            positions = self.param(f"positions_{i}", nn.initializers.truncated_normal(0.02), tokens.shape)
            placed.append(tokens + positions.astype(dtype))
        for i, tokens in enumerate(placed):
            others = placed[1 - i]
            token = Between(others.shape[-1], dtype, name=f"there_{i}")(tokens[:1])
            token = CrossAttention(config.heads[1 - i], dtype, name=f"cross_{i}")(token, others[1:])
            token = Between(tokens.shape[-1], dtype, name=f"back_{i}")(token)
            x = jnp.concatenate([token, tokens[1:]])
            for j in range(config.encoders[i]):
                x = EncoderBlock(config.heads[i], config.mlp_ratio[i], dtype, name=f"level_{i}_block_{j}")(x)
            x = layer_norm(f"norm_{i}", NORM_EPSILON, dtype)(x)
            out.append(rearrange(x[1:], "(h w) c -> h w c", h=levels[i][1].shape[0]))
        return out


class ConvUp(nn.Module):
    """3x3 convolution, group norm and ReLU, then ``doubled`` or not: x (h, w, c) -> (h, w, features)."""

    features: int
    groups: int
    doubled: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.features, (3, 3), use_bias=False, dtype=self.dtype, name="conv")(x)
        norm = nn.GroupNorm(
            self.groups, epsilon=1e-5, reduction_axes=(-3, -2, -1), use_fast_variance=False, dtype=self.dtype,
            name="norm",
        )  # fmt: skip
        x = nn.relu(norm(x))
        return resize(x, (2 * x.shape[0], 2 * x.shape[1])) if self.doubled else x


class HiFormerBody(nn.Module):
    """Image (S, S, 3) -> features (S, S, 16)."""

    config: HiFormerConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config = self.config
        fine, coarse = DoubleLevelFusion(config, name="fusion")(Pyramid(config, name="pyramid")(image))
        shape = (config.decoded, config.groups)
        fine = ConvUp(*shape, False, config.dtype, name="fine")(fine)
        for i in range(2):
            coarse = ConvUp(*shape, True, config.dtype, name=f"coarse_{i}")(coarse)
        x = nn.relu(nn.Dense(config.features, dtype=config.dtype, name="project")(fine + coarse))
        return resize(x, image.shape[:2])


class HiFormer(EncoderDecoder):
    """Root module: image (S, S, 3) -> logits (classes, S, S)."""

    config: HiFormerConfig

    def setup(self) -> None:
        self.image_encoder = HiFormerBody(self.config)
        self.mask_decoder = Classifier(self.config.classes, 3, dtype=self.config.dtype)
