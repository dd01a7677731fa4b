"""Arithmetic on whole trees, leaf by leaf; leaves keep their dtype."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.records import Tree


def add(x: Tree, y: Tree) -> Tree:
    """Sum of two trees."""
    return jax.tree.map(jnp.add, x, y)


def subtract(x: Tree, y: Tree) -> Tree:
    """Difference of two trees."""
    return jax.tree.map(jnp.subtract, x, y)


def scale(factor: Array | float, tree: Tree) -> Tree:
    """Multiply every leaf by one scalar."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def zeros_like(tree: Tree) -> Tree:
    """Zeros of the same structure."""
    return jax.tree.map(jnp.zeros_like, tree)


def select(condition: Array, new: Tree, old: Tree) -> Tree:
    """Choose a whole tree by a () bool; unlike a product, a NaN in the other tree has no effect."""
    return jax.tree.map(partial(jnp.where, condition), new, old)


def all_finite(tree: Tree) -> Array:
    """() bool: no NaN and no infinity in any leaf of floats."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    flags = jnp.stack([jnp.isfinite(x).all() for x in floats])
    # Counted, because XLA makes `all` of them one "and" per leaf and copies these into whatever reads the result: with
    # a `select` of every leaf, the program and the time to compile it grow with the square of their number.
    return flags.sum() == flags.size
