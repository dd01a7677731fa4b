"""Rotary positions of patches on two axes, as DINOv3 has them: queries and keys are turned by where a patch lies.

Source: Su et al. 2021 (RoFormer), equation 34, along either axis; huggingface/transformers,
``models/dinov3_vit/modeling_dinov3_vit.py``, for the coordinates and the order of features.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array


def angles(grid: tuple[int, int], head_dim: int, theta: float) -> np.ndarray:
    """Angle by which each pair of features is turned, for patches of a grid (h, w) -> (h * w, head_dim / 2).

    Centres of patches have coordinates between -1 and 1, whatever the grid; the first half of the angles belongs to
    rows, the second to columns, each in head_dim / 4 frequencies from 2 pi down to almost 2 pi / theta.
    """
    frequencies = 2 * math.pi / theta ** np.arange(0, 1, 4 / head_dim)
    rows, columns = (2 * (np.arange(side) + 0.5) / side - 1 for side in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return (places[:, :, None] * frequencies).reshape(len(places), -1).astype(np.float32)


def rotate(x: Array, turned: np.ndarray) -> Array:
    """Turn the last tokens of x (..., tokens, d) by angles (patches, d / 2); those before them stay as they are.

    Feature i is paired with feature i + d / 2.
    """
    patches = turned.shape[0]
    first, x = x[..., :-patches, :], x[..., -patches:, :]
    left, right = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(turned).astype(x.dtype), jnp.sin(turned).astype(x.dtype)
    moved = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return jnp.concatenate([first, moved], axis=-2)
