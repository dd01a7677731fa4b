"""Clusters of clients that part when what they pull towards cancels, inside a compiled round."""

import jax
import jax.numpy as jnp
from jax import Array


def parted(
    gram: Array,
    together: Array,
    present: Array,
    stationary: float = 0.25,
    threshold: float = 0.0,
    least: Array | float = 0.0,
) -> Array:
    """Part each cluster whose mean change is short beside its longest one, where cosines across are below a threshold.

    Such a cluster has nothing left to learn in common while its members still move: |mean| < stationary max |change|,
    and max |change| >= least.
    It parts into the groups that are joined by cosines at or above the threshold, and only if all of it is there.

    Args:
        gram: (N, N) products of the changes.
        together: (N, N) bool, who is in one cluster now.
        present: (N,) bool, whose changes there are.
        stationary: how short a mean has to be.
        threshold: of the cosine.
        least: length that the longest change of a cluster must have.

    Returns:
        (N, N) bool, who is in one cluster from now on; never more than ``together``.

    References:
        Sattler et al. 2019 (clustered federated learning), algorithm 1, https://arxiv.org/abs/1910.01991.  Differs: the
        mean is compared with the longest change, and the threshold is given instead of estimated from the noise.
    """
    gram = jnp.where(present[:, None] & present, gram, 0)
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    whole = (~together | present).all(1)
    share = together / together.sum(1, keepdims=True)
    mean = jnp.sqrt(jnp.maximum(jnp.einsum("ni,ij,nj->n", share, gram, share), 0))
    longest = jnp.where(together, lengths, 0).max(1)
    parts = whole & (mean < stationary * longest) & (longest >= least)
    # What does not move has no direction and stays with everybody.
    near = together & (gram >= threshold * lengths[:, None] * lengths)
    return together & (_joined(near) | ~parts[:, None])


def joined_by_cosine(gram: Array, present: Array, threshold: float = 0.0) -> Array:
    """Groups of clients that are joined by cosines of changes of at least a threshold.

    Args:
        gram: (N, N) products of the changes.
        present: (N,) bool, whose changes there are; the others are alone.
        threshold: of the cosine.

    Returns:
        (N, N) bool, who is in one group.
    """
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    return _joined(present[:, None] & present & (gram >= threshold * lengths[:, None] * lengths))


def _joined(near: Array) -> Array:
    """Who is reached from whom, (N, N) bool; everybody from itself."""
    n = len(near)
    joined = near | jnp.eye(n, dtype=bool)
    for _ in range(max(n - 1, 1).bit_length()):  # paths of twice the length each time
        joined = (joined.astype(jnp.float32) @ joined.astype(jnp.float32)) > 0
    return joined


def number_of_clusters(together: Array) -> Array:
    """How many clusters there are.

    Args:
        together: (N, N) bool.

    Returns:
        () number.
    """
    return (1 / together.sum(1)).sum()


def cluster_means(together: Array, present: Array) -> Array:
    """Weights with which each client's cluster averages the changes of those that are there.

    Args:
        together: (N, N) bool.
        present: (N,) bool.

    Returns:
        (N, N), rows that sum to 1, or to 0 where nobody of the cluster is there.
    """
    here = (together & present).astype(jax.dtypes.canonicalize_dtype(float))
    return here / jnp.maximum(here.sum(1, keepdims=True), 1)
