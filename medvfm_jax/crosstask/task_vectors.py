"""One vector for many tasks: what a task has learnt is told from it by a mask and a factor."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Unified(NamedTuple):
    """N task vectors of d numbers as one.

    Attributes:
        vector: (d,).
        masks: (N, d) bool, which of its numbers a task takes.
        scales: (N,), by how much a task multiplies them.
    """

    vector: Array
    masks: Array
    scales: Array


def unify(vectors: Array, known: Array) -> Unified:
    """The largest magnitude of each number among the tasks that agree with the sign of the sum.

    A task takes the numbers whose sign is that of its own, times the quotient of its mean magnitude and that of what
    it takes.

    Args:
        vectors: (N, d), trained minus start.
        known: (N,) bool, which tasks there are.

    Returns:
        The unified vector; a task that is not known has an empty mask and the scale 0.

    References:
        Huang et al. 2024 (EMR-merging), equations 3 to 6, https://arxiv.org/abs/2405.17461, which Tsouvalas et al. 2025
        (MaTU), https://arxiv.org/abs/2502.06376, take to a federation.
    """
    vectors = jnp.where(known[:, None], vectors, 0)
    sign = jnp.sign(vectors.sum(0))
    vector = sign * jnp.where(jnp.sign(vectors) == sign, jnp.abs(vectors), 0).max(0)
    masks = vectors * vector > 0
    taken = jnp.where(masks, jnp.abs(vector), 0).sum(1)
    own = jnp.abs(vectors).sum(1)
    return Unified(vector, masks, own / jnp.where(taken > 0, taken, 1) * (taken > 0))


def of_task(unified: Unified, task: Array) -> Array:
    """What one task takes of the unified vector.

    Args:
        unified: of all tasks.
        task: () its number.

    Returns:
        (d,).
    """
    return unified.scales[task] * jnp.where(unified.masks[task], unified.vector, 0)
