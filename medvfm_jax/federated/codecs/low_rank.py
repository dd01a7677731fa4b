"""PowerSGD: a matrix is sent as the product of two thin ones."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.codecs.compose import as_leaf, map_alike, require, split_keys
from medvfm_jax.federated.core.records import Codec, Tree


class Factors(NamedTuple):
    """left (n, r) with orthonormal columns, right (m, r); the matrix is left right^T."""

    left: Array
    right: Array


def powersgd(rank: int) -> Codec:
    """P = orth(M Q), Q = M^T P, one step of the power method per message, started from the last Q: 32 r (n + m) bits.

    A leaf (..., m) is the matrix (n, m) with all leading axes in n.  Leaves of fewer than two axes, and those for
    which the factors would be no smaller, are sent as they are.  Biased: M is projected on r directions, so the
    error never exceeds |M|^2, and for a fixed M it falls to the optimum, the singular values beyond r (Vogels et al.
    2019).  Use it under ``error_feedback``.  State: Q (m, r) per matrix, () for the others.

    A column of Q that is zero, as in the first message or after a leaf did not move, is drawn anew from the key:
    from zero the power method would not leave again.

    Args:
        rank: r, columns of the factors.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Vogels et al. 2019, https://arxiv.org/abs/1905.13727
    """
    require(rank > 0, "powersgd", "rank", rank, "at least 1")

    def init(update: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(update)
        starts = [
            jnp.zeros((x.shape[-1], rank), x.dtype) if _is_sent_as_factors(x, rank) else () for x in leaves
        ]
        return jax.tree.unflatten(structure, starts)

    def encode(key: Array, state: Tree, update: Tree) -> tuple[Tree, Tree]:
        leaves, structure = jax.tree.flatten(update)
        starts = structure.flatten_up_to(state)
        parts = map_alike(_factorise, leaves, split_keys(key, leaves), starts, leaves)
        new = [part.right if isinstance(part, Factors) else () for part in parts]
        return jax.tree.unflatten(structure, parts), jax.tree.unflatten(structure, new)

    def decode(message: Tree, like: Tree) -> Tree:
        likes, structure = jax.tree.flatten(like)
        return jax.tree.unflatten(structure, map_alike(_multiply, likes, structure.flatten_up_to(message)))

    return Codec(init, encode, decode)


def _is_sent_as_factors(leaf: Array, rank: int) -> bool:
    if len(leaf.shape) < 2:
        return False
    n, m = math.prod(leaf.shape[:-1]), leaf.shape[-1]
    return rank * (n + m) < n * m and rank <= min(n, m)


def _factorise(like: Array, key: Array, start: Array | tuple[()], leaf: Array) -> Factors | Array:
    if isinstance(start, tuple):
        return leaf
    matrix = leaf.reshape(-1, leaf.shape[-1])
    fresh = jax.random.normal(key, start.shape, start.dtype)
    start = jnp.where(jnp.abs(start).max(axis=0) > 0, start, fresh)
    left, _ = jnp.linalg.qr(matrix @ _unit_columns(start))
    return Factors(left, matrix.T @ left)


def _multiply(like: Array, part: Factors | Array) -> Array:
    return as_leaf(part.left @ part.right.T, like) if isinstance(part, Factors) else part


def _unit_columns(matrix: Array) -> Array:
    """Only the directions matter; their lengths, a singular value more in every message, could overflow."""
    return matrix / jnp.abs(matrix).max(axis=0)
