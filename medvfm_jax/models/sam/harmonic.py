"""HarDNet: a convolutional encoder whose layers read the layers at distances of powers of two before them.

Source: Chao et al. 2019, "HarDNet: A Low Memory Traffic Network" (arXiv 1909.00948), section 3 and table 1.  Where the
original normalises with batch statistics, this normalises over channels, so that one image gives what a batch gives.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.context.units import ConvUnit
from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.layers import layer_norm


@dataclass(frozen=True)
class HarDNetConfig:
    """Static shape; one entry per block.  The defaults are HarDNet-85's.

    shrink: whether the block's map is halved after it.  multiplier: of a layer's width for every further link.
    """

    stem: tuple[int, int] = (48, 96)
    layers: tuple[int, ...] = (8, 16, 16, 16, 16, 4)
    growth: tuple[int, ...] = (24, 24, 28, 36, 48, 256)
    features: tuple[int, ...] = (192, 256, 320, 480, 720, 1280)
    shrink: tuple[bool, ...] = (True, False, True, False, True, False)
    multiplier: float = 1.7
    dtype: Any = jnp.float32


def links_of(layer: int) -> list[int]:
    """Layers that layer 1, 2, ... reads: those at distances 1, 2, 4, ... that divide its number; 0 is the input."""
    return [layer - 2**n for n in range(layer.bit_length()) if layer % 2**n == 0]


def width_of(layer: int, growth: int, multiplier: float) -> int:
    """Features of a layer: growth, times the multiplier for every link beyond the first, rounded up to even."""
    width = growth * multiplier ** (len(links_of(layer)) - 1)
    return int(int(width + 1) / 2) * 2


class HarmonicBlock(nn.Module):
    """Layers of 3x3 convolutions with harmonic links: x (h, w, c) -> its odd layers and the last, concatenated."""

    layers: int
    growth: int
    multiplier: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        found = [x]
        for layer in range(1, self.layers + 1):
            seen = jnp.concatenate([found[i] for i in links_of(layer)], axis=-1)
            width = width_of(layer, self.growth, self.multiplier)
            found.append(_Unit(width, dtype=self.dtype, name=f"layer_{layer}")(seen))
        kept = [y for layer, y in enumerate(found) if layer % 2 == 1 or layer == self.layers]
        return jnp.concatenate(kept, axis=-1)


class HarDNet(nn.Module):
    """Image (S, S, 3) -> maps of S/4, S/8, S/16 and S/32 a side, finest first."""

    config: HarDNetConfig

    @nn.compact
    def __call__(self, image: Array) -> list[Array]:
        config, maps = self.config, []
        x = _Unit(config.stem[0], stride=2, dtype=config.dtype, name="stem_0")(image.astype(config.dtype))
        x = _Unit(config.stem[1], dtype=config.dtype, name="stem_1")(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, (layers, growth) in enumerate(zip(config.layers, config.growth, strict=True)):
            x = HarmonicBlock(layers, growth, config.multiplier, config.dtype, name=f"block_{i}")(x)
            x = _Unit(config.features[i], 1, dtype=config.dtype, name=f"join_{i}")(x)
            if config.shrink[i]:
                maps.append(x)
                x = nn.max_pool(x, (2, 2), (2, 2))
        return [*maps, x]


class MapPredictor(nn.Module):
    """Image (S, S, 3) -> ``features`` in (-1, 1) for each cell of a grid (side, side): HarDNet and a small decoder.

    The decoder doubles the deepest map and joins it with the map of that size, until it has the grid's side.
    """

    config: HarDNetConfig
    side: int
    features: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        dtype = self.config.dtype
        *finer, x = HarDNet(self.config, name="hardnet")(image)
        for level, skip in reversed(list(enumerate(finer))):
            if x.shape[0] >= self.side:
                break
            x = jnp.concatenate([resize(x, skip.shape[:2]), skip], axis=-1)
            x = ConvUnit(skip.shape[-1], dtype=dtype, name=f"up_{level}")(x)
        if x.shape[0] != self.side:
            x = resize(x, (self.side, self.side))
        return jnp.tanh(nn.Dense(self.features, dtype=dtype, name="head")(x))


class _Unit(nn.Module):
    """Convolution, norm over channels, ReLU: x (h, w, c) -> (h/stride, w/stride, width)."""

    width: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pad = self.size // 2
        shape = (self.size, self.size), self.stride, ((pad, pad), (pad, pad))
        x = Conv(self.width, *shape, use_bias=False, dtype=self.dtype, name="conv")(x)
        return nn.relu(layer_norm("norm", 1e-6, self.dtype)(x))
