"""SwinUNETR: a Swin Transformer over cubes of 2 voxels whose stages a convolutional decoder joins, patch by patch.

The paths are those of MONAI's network below ``image_encoder``, the classifier below ``mask_decoder/head``.  As there,
instance normalisation learns no scale, what leaves a stage is normalised over its channels without parameters, and the
decoder gets the first stage before and the others after their tokens are merged.

Interpretation: as in MONAI's code, a map that is smaller than a window along an axis has smaller windows there, which
take the first rows of the bias of a whole window, so that the offsets of their tokens are not their own; and the
tokens of a merged cube are in its order (``MERGED``).  Stochastic depth, which is off there by default, is left out.

Source: Hatamizadeh et al. 2022, "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images"
(arXiv 2201.01266); ``monai.networks.nets.swin_unetr`` with ``downsample="merging"`` and ``use_v2=False``.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.encoder_decoder import EncoderDecoder
from medvfm_jax.models.layers import MlpBlock, layer_norm
from medvfm_jax.models.swin.modules import NORM_EPSILON, WindowAttention, wrapping_mask
from medvfm_jax.models.unetr.modules import Classifier, Residual, UpBlock

MULTIPLE = 32  # voxels: tokens of 2, halved four times
_PATCH = 2
# Corner (depth, row, column) of a cube of 2 x 2 x 2 tokens that each eighth of the merged channels comes from.
MERGED = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))


@dataclass(frozen=True)
class SwinUnetrConfig:
    """Static shape of a SwinUNETR; stage i has ``features * 2**i`` channels at 1/2**(i + 1) of the side."""

    classes: int
    features: int = 48
    depths: tuple[int, ...] = (2, 2, 2, 2)  # blocks of each stage
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7  # tokens along one side
    dtype: Any = jnp.float32


class Block(nn.Module):
    """Pre-norm block, x (d, h, w, c) -> (d, h, w, c); ``shifted``: its windows begin half a window further."""

    heads: int
    window: int
    shifted: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, channels = x.shape[:3], x.shape[-1]
        windows = tuple(min(n, self.window) for n in size)
        shift = tuple(self.window // 2 if self.shifted and n > self.window else 0 for n in size)
        y = layer_norm("norm1", NORM_EPSILON, self.dtype)(x)
        y = jnp.pad(y, (*((0, -n % w) for n, w in zip(size, windows, strict=True)), (0, 0)))
        y = jnp.roll(y, [-n for n in shift], (0, 1, 2))
        mask = wrapping_mask(y.shape[:3], windows, shift) if any(shift) else None
        sides = dict(zip(("i", "j", "k"), windows, strict=True))
        counts = dict(
            zip(("d", "h", "w"), (n // w for n, w in zip(y.shape, windows, strict=False)), strict=True)
        )
        y = rearrange(y, "(d i) (h j) (w k) c -> (d h w) (i j k) c", **sides)
        y = WindowAttention(self.heads, self.window, self.dtype, 3, name="attn")(y, mask)
        y = rearrange(y, "(d h w) (i j k) c -> (d i) (h j) (w k) c", **sides, **counts)
        y = jnp.roll(y, shift, (0, 1, 2))
        x = x + y[: size[0], : size[1], : size[2]]
        mlp = MlpBlock(4 * channels, names=("linear1", "linear2"), dtype=self.dtype, name="mlp")
        return x + mlp(layer_norm("norm2", NORM_EPSILON, self.dtype)(x))


class PatchMerging(nn.Module):
    """Every 2 x 2 x 2 tokens become one of twice the channels: x (d, h, w, c) -> (d/2, h/2, w/2, 2 c), even sides."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        corners = jnp.concatenate([x[i::2, j::2, k::2] for i, j, k in MERGED], axis=-1)
        corners = layer_norm("norm", NORM_EPSILON, self.dtype)(corners)
        return nn.Dense(2 * x.shape[-1], use_bias=False, dtype=self.dtype, name="reduction")(corners)


class Swin3d(nn.Module):
    """Volume (D, H, W, c) -> the tokens (D/2, H/2, W/2, features) and what each stage gives to the next, normalised."""

    config: SwinUnetrConfig

    @nn.compact
    def __call__(self, volume: Array) -> list[Array]:
        config, dtype = self.config, self.config.dtype
        p = _PATCH
        cubes = rearrange(volume, "(d i) (h j) (w k) c -> d h w (i j k c)", i=p, j=p, k=p)
        # As in ``swin.modules.PatchEmbed``: cubes of zeros are no tokens of zeros at start.
        bound = cubes.shape[-1] ** -0.5
        bias = nn.initializers.uniform(2 * bound)
        embed = nn.Dense(
            config.features, bias_init=lambda *args: bias(*args) - bound, dtype=dtype, name="patch_embed"
        )
        x = embed(cubes)
        found = [_normalised(x)]
        for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True), 1):
            for i in range(depth):
                x = Block(heads, config.window, i % 2 == 1, dtype, name=f"layers{stage}_blocks_{i}")(x)
            x = PatchMerging(dtype, name=f"layers{stage}_downsample")(x)
            found.append(_normalised(x))
        return found


def _normalised(x: Array) -> Array:
    """Layer normalisation without parameters, in float32 inside."""
    wide = x.astype(jnp.float32)
    away = wide - wide.mean(-1, keepdims=True)
    return (away / jnp.sqrt(jnp.square(away).mean(-1, keepdims=True) + NORM_EPSILON)).astype(x.dtype)


class SwinUnetrBody(nn.Module):
    """Volume (D, H, W, c) -> features (D, H, W, features)."""

    config: SwinUnetrConfig

    @nn.compact
    def __call__(self, volume: Array) -> Array:
        config, dtype, width = self.config, self.config.dtype, self.config.features
        volume = volume.astype(dtype)
        *fine, coarse, x = Swin3d(config, name="swinViT")(volume)
        skips = [Residual(width, dtype, name="encoder1_layer")(volume)]
        for level, tokens in enumerate(fine, 2):
            skips.append(Residual(tokens.shape[-1], dtype, name=f"encoder{level}_layer")(tokens))
        skips.append(coarse)
        x = Residual(x.shape[-1], dtype, name="encoder10_layer")(x)
        for level in reversed(range(5)):
            x = UpBlock(skips[level].shape[-1], dtype, name=f"decoder{level + 1}")(x, skips[level])
        return x


class SwinUnetr(EncoderDecoder):
    """Root module: volume (D, H, W, c) -> logits (classes, D, H, W)."""

    config: SwinUnetrConfig

    def setup(self) -> None:
        self.image_encoder = SwinUnetrBody(self.config)
        self.mask_decoder = Classifier(self.config)
