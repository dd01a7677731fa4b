"""RepViT as an image encoder: image (S, S, 3) -> embedding (S/16, S/16, 256), convolutions alone.

A stem that quarters the image, four stages of blocks, each stage but the first halving its map.  EdgeSAM (M1): the last
two stages are brought to 256 channels and summed, the last one enlarged to the size of the one before.  RepViT-SAM
(M2.3): the last stage keeps the grid of the one before and is the embedding.  The branches of a depthwise block keep
their parameters apart, as in training checkpoints, and are computed as one convolution.

Sources: Wang et al. 2023, "RepViT" and "RepViT-SAM"; Zhou et al. 2023, "EdgeSAM", section 3.1.  EdgeSAM's is written
from these descriptions and from the names and shapes of the checkpoint, the other from the Apache-2.0 release
(THU-MIG/RepViT).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.backend import backend as current_backend
from medvfm_jax.models.convolution import (
    ConvBN,
    DepthwiseConv,
    FrozenBatchNorm,
    PatchConv,
    depthwise_grouped,
    depthwise_shifted,
)
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import gelu, neck


@dataclass(frozen=True)
class RepViTConfig:
    """Static shape of a RepViT encoder; one entry per stage.  The defaults are EdgeSAM's RepViT-M1."""

    dims: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (3, 3, 15, 2)  # blocks of a stage that keep its grid
    out_features: int = 256
    fuse: bool = True  # sum the last two stages; False: the last one, which keeps its grid, alone
    joint: bool = False  # see RepVggDepthwise
    dtype: Any = jnp.float32

    @property
    def reduction(self) -> int:
        """Pixels of the image per cell of the embedding, along one side: that of the last stage but one."""
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
    """x + depthwise 3x3 + a scale and shift per channel, x (h, w, c) -> (h, w, c).

    EdgeSAM's branches have a batch norm each; with ``joint`` the first has one, the second a bias, and their sum with x
    another one (RepViT-SAM).  Parameters are those of the branches; what is computed is one convolution with ``fused``
    of them, which is the same.
    """

    joint: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim, options = x.shape[-1], {"depthwise": True, "dtype": self.dtype}
        if self.is_initializing():
            y = ConvBN(dim, 3, **options, name="conv")(x)
            if self.joint:
                once = {"feature_group_count": dim, "dtype": self.dtype}
                y = DepthwiseConv(dim, (1, 1), 1, **once, name="conv1")(x) + y
                return FrozenBatchNorm(dtype=self.dtype, name="bn")(y + x)
            return x + y + ConvBN(dim, 1, **options, name="conv1")(x)
        kernel, bias = (part.astype(x.dtype) for part in fused(self.variables["params"], self.joint))
        convolve = depthwise_shifted if current_backend() == "cpu" else depthwise_grouped
        return convolve(x, kernel, 1) + bias


def fused(branches: Any, joint: bool) -> tuple[Array, Array]:
    """Parameters of the branches -> kernel (3, 3, c) and bias (c,) of the one convolution that they add up to."""
    kernel, bias = _folded(branches["conv"]["c"]["kernel"][:, :, 0], 0.0, branches["conv"]["bn"])
    second = branches["conv1"]
    centre, shift = (
        (second["kernel"][0, 0, 0], second["bias"])
        if joint
        else _folded(second["c"]["kernel"][0, 0, 0], 0.0, second["bn"])
    )
    kernel, bias = kernel.at[1, 1].add(centre + 1.0), bias + shift
    return _folded(kernel, bias, branches["bn"]) if joint else (kernel, bias)


def _folded(kernel: Array, bias: Array | float, norm: Any) -> tuple[Array, Array]:
    """A convolution and the batch norm behind it as one convolution."""
    factor = norm["scale"] * jax.lax.rsqrt(norm["var"] + 1e-5)
    return kernel * factor, norm["bias"] + (bias - norm["mean"]) * factor


class RepViTBlock(nn.Module):
    """Mix positions, then channels, x (h, w, c) -> (h, w, c), or (h/s, w/s, dim) where it opens a stage.

    stride: s of a block that opens a stage, 0 for the others.
    gated: a squeeze-and-excitation between both, in the others.
    joint: see ``RepVggDepthwise``.
    """

    dim: int
    stride: int = 0
    gated: bool = False
    joint: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.stride:
            opening = ConvBN(x.shape[-1], 3, self.stride, True, self.dtype, name="token_mixer_0")
            x = ConvBN(self.dim, dtype=self.dtype, name="token_mixer_2")(opening(x))
        else:
            x = RepVggDepthwise(self.joint, self.dtype, name="token_mixer_0")(x)
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
            opening = 1 if not config.fuse and i + 1 == len(config.dims) else 2
            for stride, gated in ([(opening, False)] if i else []) + [(0, gated) for gated in gates]:
                block += 1
                x = RepViTBlock(dim, stride, gated, config.joint, dtype, name=f"features_{block}")(x)
            stages.append(x)
        if not config.fuse:
            return neck(x, config.out_features, dtype)
        one = {"strides": 1, "use_bias": False, "dtype": dtype}
        fine = PatchConv(config.out_features, (1, 1), **one, name="fuse_stage2")(stages[-2])
        coarse = PatchConv(config.out_features, (1, 1), **one, name="fuse_stage3")(stages[-1])
        fused = fine + resize(coarse, fine.shape[:2], "bicubic")
        return neck(fused, config.out_features, dtype)
