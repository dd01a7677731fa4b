"""SAM 2's memory attention: the map of a frame takes in what earlier frames showed of an object.

Sources: Ravi et al. 2024, "SAM 2", appendix C; Heo et al. 2024, "Rotary Position Embedding for Vision Transformer";
facebookresearch/sam2, ``sam2/modeling/memory_attention.py`` and ``sam2/modeling/position_encoding.py``.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.models.attention import attend_in_steps
from medvfm_jax.models.layers import layer_norm

NORM_EPSILON = 1e-5
TEMPERATURE = 10_000.0
POSITION_SHARE = 0.1  # of the map's positions that is added to it


def sine_map(height: int, width: int, features: int) -> np.ndarray:
    """Positions of a map (height, width, features) float32: sines and cosines of y, then of x, over the whole side."""

    def axis(length: int) -> np.ndarray:
        position = np.arange(1, length + 1, dtype=np.float32) / (length + 1e-6) * 2 * np.pi
        waves = position[:, None] / _periods(features // 2)
        return np.stack([np.sin(waves[:, ::2]), np.cos(waves[:, 1::2])], axis=-1).reshape(length, -1)

    shape = (height, width, features // 2)
    y, x = np.broadcast_to(axis(height)[:, None], shape), np.broadcast_to(axis(width)[None], shape)
    return np.concatenate([y, x], axis=-1).astype(np.float32)


def sine_steps(offsets: Array, features: int) -> Array:
    """Sines and cosines of numbers (n,) -> (n, features)."""
    waves = offsets[:, None] / _periods(features // 2)
    return jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], axis=-1)


def _periods(count: int) -> np.ndarray:
    return (TEMPERATURE ** (2 * (np.arange(count) // 2) / count)).astype(np.float32)


def rotations(height: int, width: int, features: int) -> np.ndarray:
    """Angles (height * width, features / 2): a quarter of the features turns with x, the next with y."""
    rate = 1.0 / TEMPERATURE ** (np.arange(0, features, 4)[: features // 4] / features)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.concatenate([x.reshape(-1, 1) * rate, y.reshape(-1, 1) * rate], axis=-1).astype(np.float32)


def rotate(x: Array, angles: np.ndarray) -> Array:
    """Turn every pair of neighbouring features of tokens x (n, c) by its angle (n, c / 2), in float32."""
    pairs = rearrange(x.astype(jnp.float32), "n (c two) -> n c two", two=2)
    cos, sin, (a, b) = jnp.cos(angles), jnp.sin(angles), (pairs[..., 0], pairs[..., 1])
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)


class RotaryAttention(nn.Module):
    """One head of attention, q (n, c) on k, v (m, c') -> (n, c).

    Queries turn with ``angles`` (n, c / 2), keys too: the first m - ``unturned`` are whole maps of n tokens each, the
    rest have no place.  ``present`` (m,) leaves keys out; None keeps all.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        q: Array,
        k: Array,
        v: Array,
        angles: np.ndarray,
        unturned: int = 0,
        present: Array | None = None,
    ) -> Array:
        dim = q.shape[-1]
        q, k, v = (
            nn.Dense(dim, dtype=self.dtype, name=name)(x)
            for x, name in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj"))
        )
        turned = len(k) - unturned
        maps = np.tile(angles, (turned // len(angles), 1))
        k = jnp.concatenate([rotate(k[:turned], maps), k[turned:]])
        q = rotate(q, angles) * jnp.asarray(dim**-0.5, q.dtype)
        out = attend_in_steps(q[None], k[None], v[None], present)[0]
        return nn.Dense(dim, dtype=self.dtype, name="out_proj")(out)


class MemoryLayer(nn.Module):
    """Pre-norm layer: attention of the map to itself, then to memories, and an MLP; x (n, c) -> (n, c)."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        memories: Array,
        positions: Array,
        angles: np.ndarray,
        unturned: int,
        present: Array | None,
    ) -> Array:
        dtype = self.dtype
        y = layer_norm("norm1", NORM_EPSILON, dtype)(x)
        x = x + RotaryAttention(dtype, name="self_attn")(y, y, y, angles)
        y = layer_norm("norm2", NORM_EPSILON, dtype)(x)
        to_memories = RotaryAttention(dtype, name="cross_attn_image")
        x = x + to_memories(y, memories + positions, memories, angles, unturned, present)
        y = layer_norm("norm3", NORM_EPSILON, dtype)(x)
        y = nn.relu(nn.Dense(self.hidden, dtype=dtype, name="linear1")(y))
        return x + nn.Dense(x.shape[-1], dtype=dtype, name="linear2")(y)


class MemoryAttention(nn.Module):
    """Map (h, w, c) and memories (m, c') with their positions (m, c') -> map (h, w, c).

    The last ``unturned`` memories have no place on the map (object pointers); ``present`` (m,) leaves memories out.
    """

    depth: int = 4
    hidden: int = 2048
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, memories: Array, positions: Array, unturned: int, present: Array | None = None
    ) -> Array:
        (h, w, c), dtype = x.shape, self.dtype
        angles = rotations(h, w, c)
        x = x.astype(dtype) + (POSITION_SHARE * sine_map(h, w, c)).astype(dtype)
        x = rearrange(x, "h w c -> (h w) c")
        for i in range(self.depth):
            layer = MemoryLayer(self.hidden, dtype, name=f"layers_{i}")
            x = layer(x, memories.astype(dtype), positions.astype(dtype), angles, unturned, present)
        return rearrange(layer_norm("norm", NORM_EPSILON, dtype)(x), "(h w) c -> h w c", h=h)
