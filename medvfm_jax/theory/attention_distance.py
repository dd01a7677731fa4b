"""How far apart the places are that attention connects."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

_MOST_EXTRA = 8  # tokens before those of the grid: a class token and registers


def grid_side(tokens: int) -> int | None:
    """Side of the square grid that tokens, after those of no place, are of; None if they are of none.

    Args:
        tokens: of a window or a whole picture, with at most 8 of no place (class token, registers) before them.

    Returns:
        The side.
    """
    side = math.isqrt(tokens)
    return side if side >= 2 and tokens - side * side <= _MOST_EXTRA else None


def attention_distance(weights: Array) -> Array:
    """Mean distance from a query to the places it attends to, weighted by attention: one number for each head.

    Tokens of no place are left out, and what others give to them.

    Args:
        weights: (..., heads, t, t), rows that sum to 1; tokens are the rows of a square grid one after another, after
            those of no place.  Leading axes are averaged over: pictures, windows.

    Returns:
        (heads,), in sides of a token: 0 where each attends to itself.

    Raises:
        ValueError: tokens of no square grid.

    References:
        Dosovitskiy et al. 2021, figure 7, https://arxiv.org/abs/2010.11929; Raghu et al. 2021, section 4,
        https://arxiv.org/abs/2108.08810.
    """
    side = grid_side(weights.shape[-1])
    if side is None or weights.shape[-2] != weights.shape[-1]:
        raise ValueError(f"attention of {weights.shape[-2:]} tokens is not that of a square grid with itself")
    of_places = weights[..., -side * side :, -side * side :].astype(jnp.float32)
    given = jnp.maximum(of_places.sum(-1), 1e-30)
    far = (of_places * _distances(side)).sum(-1) / given
    return far.mean(axis=(*range(far.ndim - 2), far.ndim - 1))


def uniform_distance(side: int) -> float:
    """The distance of attention that is the same everywhere in a square grid.

    Args:
        side: of the grid, in tokens.

    Returns:
        In sides of a token: 7.28 of 14.
    """
    return float(_distances(side).mean())


def _distances(side: int) -> NDArray[np.float32]:
    rows, columns = np.divmod(np.arange(side * side), side)
    return np.hypot(rows[:, None] - rows, columns[:, None] - columns).astype(np.float32)
