"""Multi-scale context blocks: Linen modules that map a feature map (h, w, c) to one of the same shape.

They are written to be added to a frozen encoder's output: ``x + block(x)``.  With ``zero_init`` (the
default) the last projection starts at zero, so the sum starts as the identity.  ``width`` is the number of
channels inside a block and governs how many parameters are trained.  The originals normalise with batch
statistics; these use layer normalisation over channels, so that one image gives what a batch gives.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jax import Array

from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import layer_norm
from medvfm_jax.types import MedvfmError


class MapTooSmall(MedvfmError):
    """A context block's grid or stride does not fit into the feature map."""


class ConvUnit(nn.Module):
    """Convolution, layer normalisation over channels, GELU: x (h, w, c) -> (h, w, width)."""

    width: int
    kernel_size: int = 3
    rate: int = 1  # dilation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, rate = (self.kernel_size,) * 2, (self.rate,) * 2
        x = nn.Conv(self.width, size, kernel_dilation=rate, use_bias=False, dtype=self.dtype, name="conv")(x)
        return nn.gelu(layer_norm("norm", 1e-6, self.dtype)(x), approximate=False)


class LastProjection(nn.Module):
    """1x1 convolution to ``features`` channels, zero at the start if asked: x (h, w, c) -> (h, w, out)."""

    features: int
    zero_init: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return nn.Dense(self.features, kernel_init=init, dtype=self.dtype, name="proj")(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, x (h, w, c) -> (h, w, c).

    A 1x1 convolution, one dilated 3x3 convolution per rate and the image's mean, side by side, then fused.
    The default rates are those for an output stride of 16.
    Source: DeepLabv3 (Chen et al. 2017, section 3.3).
    """

    width: int = 64
    rates: Sequence[int] = (6, 12, 18)
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        branches = [ConvUnit(self.width, 1, dtype=self.dtype, name="pointwise")(x)]
        branches += [ConvUnit(self.width, 3, rate, self.dtype, name=f"rate_{rate}")(x) for rate in self.rates]
        mean = reduce(x, "h w c -> 1 1 c", "mean")
        mean = ConvUnit(self.width, 1, dtype=self.dtype, name="image_pool")(mean)
        branches.append(repeat(mean, "1 1 c -> h w c", h=h, w=w))
        fused = ConvUnit(self.width, 1, dtype=self.dtype, name="fuse")(jnp.concatenate(branches, axis=-1))
        return LastProjection(c, self.zero_init, self.dtype, name="last")(fused)


class PyramidPooling(nn.Module):
    """Pyramid pooling module, x (h, w, c) -> (h, w, c).

    Means over 1x1, 2x2, 3x3 and 6x6 regions, each projected, resized back and concatenated with x.
    Source: PSPNet (Zhao et al. 2017, section 3.2).  Raises MapTooSmall if a grid exceeds the map.
    """

    width: int = 64
    grids: Sequence[int] = (1, 2, 3, 6)
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        branches = [x.astype(self.dtype)]
        for grid in self.grids:
            if grid > min(h, w):
                raise MapTooSmall(f"a {grid}x{grid} grid does not fit a {h}x{w} map: use smaller grids.")
            pooled = ConvUnit(self.width, 1, dtype=self.dtype, name=f"grid_{grid}")(region_means(x, grid))
            branches.append(resize(pooled, (h, w), "bilinear"))
        fused = ConvUnit(self.width, 3, dtype=self.dtype, name="fuse")(jnp.concatenate(branches, axis=-1))
        return LastProjection(c, self.zero_init, self.dtype, name="last")(fused)


class FeaturePyramid(nn.Module):
    """Top-down pyramid: maps [(h, w, c_0), (h/2, w/2, c_1), ...], finest first -> maps of ``width`` channels.

    Lateral 1x1 convolutions, nearest-neighbour doubling from the coarser level, addition, 3x3 smoothing.
    Source: Feature Pyramid Networks (Lin et al. 2017, section 3).  Sides need not be exact halves.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        merged: list[Array] = []
        for level in reversed(range(len(maps))):
            lateral = nn.Dense(self.width, dtype=self.dtype, name=f"lateral_{level}")(maps[level])
            merged.append(lateral + enlarge(merged[-1], lateral.shape[:2]) if merged else lateral)
        return [
            nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f"smooth_{level}")(m)
            for level, m in enumerate(reversed(merged))
        ]


class FPNNeck(nn.Module):
    """Feature pyramid on one map, x (h, w, c) -> (h, w, c).

    The coarser levels are made by 3x3 convolutions with stride 2, as a plain ViT has one scale only
    (Li et al. 2022, ViTDet, section 3); ``FeaturePyramid`` merges them; the levels are summed at full size.
    """

    width: int = 64
    levels: int = 3
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        maps = [ConvUnit(self.width, 1, dtype=self.dtype, name="squeeze")(x)]
        for level in range(1, self.levels):
            # Padding (1, 1), not SAME: with stride 2 SAME pads one side only and shifts the grid.
            down = nn.Conv(
                self.width, (3, 3), 2, padding=((1, 1), (1, 1)), dtype=self.dtype, name=f"down_{level}"
            )
            maps.append(nn.gelu(down(maps[-1]), approximate=False))
        pyramid = FeaturePyramid(self.width, self.dtype, name="pyramid")(maps)
        fused = sum(enlarge(m, (h, w)) for m in pyramid)
        fused = nn.gelu(layer_norm("norm", 1e-6, self.dtype)(fused), approximate=False)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(fused)


class CrossScaleAttention(nn.Module):
    """Every position attends to tokens that mix several scales, x (h, w, c) -> (h, w, c).

    Keys and values are a cross-scale embedding: convolutions with kernels of stride, 2*stride, 4*stride
    pixels, all at the same stride, concatenated; the smallest kernel gets half the channels, the next a
    quarter, and so on.
    Source: CrossFormer (Wang et al. 2022, section 3.1), with global attention over its few tokens in
    place of the short- and long-distance groups.  Raises MapTooSmall if the stride exceeds the map.
    """

    width: int = 64
    heads: int = 4
    stride: int = 4
    kernels: int = 3
    zero_init: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, c = x.shape
        if self.stride > min(h, w):
            raise MapTooSmall(f"stride {self.stride} does not fit a {h}x{w} map: use a smaller stride.")
        squeezed = ConvUnit(self.width, 1, dtype=self.dtype, name="squeeze")(x)
        embedded = []
        for i, features in enumerate(_halved(self.width, self.kernels)):
            size = self.stride * 2**i
            conv = nn.Conv(features, (size, size), self.stride, dtype=self.dtype, name=f"scale_{size}")
            embedded.append(conv(squeezed))
        tokens = rearrange(jnp.concatenate(embedded, axis=-1), "h w c -> (h w) c")
        tokens = layer_norm("norm", 1e-6, self.dtype)(tokens)
        queries = rearrange(squeezed, "h w c -> (h w) c")
        split = "n (heads d) -> heads n d"
        q = rearrange(nn.Dense(self.width, dtype=self.dtype, name="q")(queries), split, heads=self.heads)
        k = rearrange(nn.Dense(self.width, dtype=self.dtype, name="k")(tokens), split, heads=self.heads)
        v = rearrange(nn.Dense(self.width, dtype=self.dtype, name="v")(tokens), split, heads=self.heads)
        logits = jnp.einsum("and,amd->anm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        out = jnp.einsum("anm,amd->and", jax.nn.softmax(logits).astype(v.dtype), v)
        out = rearrange(out, "heads (h w) d -> h w (heads d)", h=h)
        return LastProjection(c, self.zero_init, self.dtype, name="last")(out)


def region_means(x: Array, grid: int) -> Array:
    """Mean of x (h, w, c) over a grid of regions -> (grid, grid, c); regions as in adaptive average pooling.

    Region i of a side of n pixels spans floor(i*n/grid) to ceil((i+1)*n/grid); neighbours may share a row.
    """

    def weights(n: int) -> np.ndarray:
        index, pixel = np.arange(grid)[:, None], np.arange(n)
        inside = (pixel >= index * n // grid) & (pixel < -(-(index + 1) * n // grid))
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

    rows, columns = weights(x.shape[0]), weights(x.shape[1])
    return jnp.einsum("ih,hwc,jw->ijc", rows, x, columns).astype(x.dtype)


def enlarge(x: Array, size: tuple[int, int]) -> Array:
    """Nearest-neighbour enlargement of x (h, w, c) to (*size, c), cut at the lower right if needed."""
    rows, columns = (-(-target // side) for target, side in zip(size, x.shape[:2], strict=True))
    grown = repeat(x, "h w c -> (h rows) (w columns) c", rows=rows, columns=columns)
    return grown[: size[0], : size[1]]


def _halved(width: int, parts: int) -> list[int]:
    """Split ``width`` into 1/2, 1/4, ...; the last two parts are equal."""
    sizes = [width // 2 ** (i + 1) for i in range(parts - 1)]
    return [*sizes, width - sum(sizes)]
