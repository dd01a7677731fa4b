"""RepViT-M1 as the image encoder of EdgeSAM: image (S, S, 3) -> embedding (S/16, S/16, 256), convolutions alone.

A stem that quarters the image, four stages of blocks, each stage but the first halving its map; the last two stages are
brought to 256 channels and summed, the last one enlarged to the size of the one before.  The branches of a depthwise
block are kept apart, as in training checkpoints.

Sources: Wang et al. 2023, "RepViT"; Zhou et al. 2023, "EdgeSAM", section 3.1.  Written from these descriptions and from
the names and shapes of the checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.convolution import ConvBN, PatchConv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import gelu, neck


@dataclass(frozen=True)
class RepViTConfig:
    """Static shape of a RepViT encoder; one entry per stage. The defaults are EdgeSAM's RepViT-M1."""

    dims: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (3, 3, 15, 2)  # blocks of a stage that keep its grid
    out_features: int = 256
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per cell of the embedding, along one side: the last stage is enlarged again."""
        return 4 * 2 ** (len(self.dims) - 2)


class SqueezeExcite(nn.Module):
    """Gate for every channel from the mean of the map, x (h, w, c) -> (h, w, c); hidden width c / 4, in eights."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        hidden = max(8, (dim // 4 + 4) // 8 * 8)
        one = {"strides": 1, "dtype": self.dtype}
        gate = nn.relu(PatchConv(hidden, (1, 1), **one, name="fc1")(x.mean((0, 1), keepdims=True)))
        return x * nn.sigmoid(PatchConv(dim, (1, 1), **one, name="fc2")(gate))


class RepVggDepthwise(nn.Module):
    """x + depthwise 3x3 + a scale and shift per channel, x (h, w, c) -> (h, w, c), each branch with its batch norm."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        options = {"depthwise": True, "dtype": self.dtype}
        return (
            x
            + ConvBN(x.shape[-1], 3, **options, name="conv")(x)
            + ConvBN(x.shape[-1], 1, **options, name="conv1")(x)
        )


class RepViTBlock(nn.Module):
    """Mix positions, then channels, x (h, w, c) -> (h, w, c), or (h/2, w/2, dim) where it halves the map.

    gated: a squeeze-and-excitation between both, in blocks that keep the map.
    """

    dim: int
    halve: bool = False
    gated: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.halve:
            depthwise = ConvBN(x.shape[-1], 3, 2, depthwise=True, dtype=self.dtype, name="token_mixer_0")
            x = ConvBN(self.dim, dtype=self.dtype, name="token_mixer_2")(depthwise(x))
        else:
            x = RepVggDepthwise(self.dtype, name="token_mixer_0")(x)
            x = SqueezeExcite(self.dtype, name="token_mixer_1")(x) if self.gated else x
        y = gelu(ConvBN(2 * self.dim, dtype=self.dtype, name="channel_mixer_0")(x))
        return x + ConvBN(self.dim, dtype=self.dtype, name="channel_mixer_2")(y)


class RepViT(nn.Module):
    """Image (S, S, 3) -> embedding (S/r, S/r, 256), r = ``config.reduction``; blocks are ``features_1``, ..."""

    config: RepViTConfig

    @nn.compact
    def __call__(self, image: Array) -> Array:
        config, dtype = self.config, self.config.dtype
        x = gelu(ConvBN(config.dims[0] // 2, 3, 2, dtype=dtype, name="stem_0")(image.astype(dtype)))
        x = ConvBN(config.dims[0], 3, 2, dtype=dtype, name="stem_2")(x)
        stages, block = [], 0
        for i, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
            gates = [j % 2 == 0 and j + 1 < depth for j in range(depth)]
            for halve, gated in ([(True, False)] if i else []) + [(False, gated) for gated in gates]:
                block += 1
                x = RepViTBlock(dim, halve, gated, dtype, name=f"features_{block}")(x)
            stages.append(x)
        one = {"strides": 1, "use_bias": False, "dtype": dtype}
        fine = PatchConv(config.out_features, (1, 1), **one, name="fuse_stage2")(stages[-2])
        coarse = PatchConv(config.out_features, (1, 1), **one, name="fuse_stage3")(stages[-1])
        fused = fine + resize(coarse, fine.shape[:2], "bicubic")
        return neck(fused, config.out_features, dtype)
