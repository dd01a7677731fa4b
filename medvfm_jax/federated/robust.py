"""Robust aggregation: a rule over all uploads takes the place of their mean.

A rule maps (points (n, D), weights (n,), present (n,) bool) to one point (D,); points of absent clients are ignored.
``robust`` puts a rule into any averaging algorithm.  Median, trimmed mean and Krum count clients equally.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.records import Algorithm, Cohort, Server, Tree

Rule = Callable[[Array, Array, Array], Array]


def robust(algorithm: Algorithm, rule: Rule) -> Algorithm:
    """Let ``rule`` combine the uploads of an algorithm that would average them.

    Raises BadFederation for an algorithm that has a reduction of its own.
    """
    if algorithm.reduction != "mean":
        raise BadFederation(
            "A robust rule replaces a mean; this algorithm combines the uploads in its own way."
        )

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        points = jax.vmap(lambda upload: ravel_pytree(upload)[0])(uploads)
        _, restore = ravel_pytree(jax.tree.map(lambda x: x[0], uploads))
        upload = restore(rule(points, cohort.weights, cohort.present))
        share = cohort.weights / jnp.maximum(cohort.weights.sum(), 1e-30)
        public = jax.tree.map(lambda x: (share * x).sum(), cohort.public)
        return algorithm.aggregate(server, upload, cohort._replace(public=public))

    return algorithm._replace(aggregate=aggregate, reduction="stack")


def coordinate_median(points: Array, weights: Array, present: Array) -> Array:
    """Median of every coordinate; the mean of the two middle values for an even count (Yin et al. 2018)."""
    del weights
    ordered, count = _sorted_present(points, present), present.sum()
    low, high = jnp.maximum(count - 1, 0) // 2, count // 2
    return (ordered[low] + ordered[jnp.minimum(high, len(points) - 1)]) / 2


def trimmed_mean(trim: float = 0.2) -> Rule:
    """Mean of every coordinate without its floor(trim m) largest and smallest of m values (Yin et al. 2018).

    Raises BadFederation unless 0 <= trim < 1/2.
    """
    if not 0 <= trim < 0.5:
        raise BadFederation(f"trimmed mean: trim must be at least 0 and below 0.5, not {trim}.")

    def rule(points: Array, weights: Array, present: Array) -> Array:
        del weights
        count = present.sum()
        cut = jnp.floor(trim * count + 1e-6).astype(count.dtype)  # 0.3 * 10 must be 3
        rank = jnp.arange(len(points))[:, None]
        kept = (rank >= cut) & (rank < count - cut)
        total = jnp.where(kept, _sorted_present(points, present), 0).sum(0)
        return total / jnp.maximum(count - 2 * cut, 1).astype(points.dtype)

    return rule


def krum(byzantine: int) -> Rule:
    """The upload with the smallest sum of squared distances to its m - f - 2 nearest (Blanchard et al. 2017)."""
    return multi_krum(byzantine, 1)


def multi_krum(byzantine: int, chosen: int) -> Rule:
    """Mean of the ``chosen`` uploads with the best Krum scores; tolerates f = ``byzantine`` of n >= 2 f + 3.

    The condition is checked against the rows n when the round is traced (BadFederation); if fewer participate, at
    least one neighbour is still counted.
    """

    def rule(points: Array, weights: Array, present: Array) -> Array:
        del weights
        if len(points) < 2 * byzantine + 3:
            raise BadFederation(
                f"Krum against {byzantine} bad clients needs at least {2 * byzantine + 3}, not {len(points)}."
            )
        scores = krum_scores(points, present, byzantine)
        order = jnp.argsort(scores)
        best = jnp.arange(len(points)) < jnp.minimum(chosen, present.sum())
        picked = jnp.zeros(len(points), bool).at[order].set(best)
        return jnp.where(picked[:, None], points, 0).sum(0) / jnp.maximum(picked.sum(), 1).astype(
            points.dtype
        )

    return rule


def krum_scores(points: Array, present: Array, byzantine: int) -> Array:
    """Points (n, D) -> scores (n,): sum of the m - f - 2 smallest squared distances to others; inf if absent."""
    n = len(points)
    distances = jax.lax.map(lambda x: ((points - x) ** 2).sum(-1), points)
    useless = ~present[:, None] | ~present[None] | jnp.eye(n, dtype=bool)
    nearest = jnp.sort(jnp.where(useless, jnp.inf, distances), axis=1)
    counted = jnp.arange(n) < jnp.maximum(present.sum() - byzantine - 2, 1)
    return jnp.where(present, jnp.where(counted, nearest, 0).sum(1), jnp.inf)


def geometric_median(iterations: int = 3, smoothing: float = 1e-6) -> Rule:
    """Smoothed Weiszfeld steps: z <- weighted mean with weights p_i / max(smoothing, |y_i - z|) (RFA, Pillutla 2022).

    Starts at "no change" (z = 0) rather than at the mean, which a single upload can move arbitrarily far.
    """
    return partial(_weiszfeld, iterations, smoothing)


def _weiszfeld(iterations: int, smoothing: float, points: Array, weights: Array, present: Array) -> Array:
    def step(_: int, z: Array) -> Array:
        distance = jnp.sqrt(((points - z) ** 2).sum(-1))
        share = jnp.where(present, weights, 0) / jnp.maximum(distance, smoothing)
        share = share / jnp.maximum(share.sum(), 1e-30)
        return share.astype(points.dtype) @ jnp.where(present[:, None], points, 0)

    return jax.lax.fori_loop(0, iterations, step, jnp.zeros_like(points[0]))


def _sorted_present(points: Array, present: Array) -> Array:
    return jnp.sort(jnp.where(present[:, None], points, jnp.inf), axis=0)
