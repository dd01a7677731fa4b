"""Robust aggregation: a rule over all uploads takes the place of their mean.

A rule maps (points (n, D), weights (n,), present (n,) bool) to one point (D,); points of absent clients are ignored.
``robust`` puts a rule into any averaging algorithm.  Median, trimmed mean and Krum count clients equally.

How many of m bad clients a rule bears: median and geometric median floor((m - 1) / 2) (the latter by weight), the
trimmed mean floor(trim m), Krum f with m >= 2 f + 3.  Uploads that are not finite were excluded before (``rounds``).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Algorithm, Cohort, Server, Tree

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
    """Median of every coordinate; the mean of the two middle values for an even count (Yin et al. 2018).

    References:
        Yin et al. 2018, https://arxiv.org/abs/1803.01498
    """
    del weights
    ordered, count = _sorted_present(points, present), present.sum()
    low, high = jnp.maximum(count - 1, 0) // 2, count // 2
    return (ordered[low] + ordered[jnp.minimum(high, len(points) - 1)]) / 2


def weighted_median(points: Array, weights: Array, present: Array) -> Array:
    """Median by weight of every coordinate: half of the weight on either side; where all weigh alike, the median.

    Where a half ends exactly between two values, their mean.  points (n, D), weights and present (n,) -> (D,).
    """
    masked = jnp.where(present[:, None], points, jnp.inf)
    order = jnp.argsort(masked, axis=0)
    ordered = jnp.take_along_axis(masked, order, axis=0)
    below = jnp.cumsum(jnp.where(present, weights, 0)[order], axis=0)
    low, high = (
        jnp.argmax(reached, axis=0)[None] for reached in (2 * below >= below[-1], 2 * below > below[-1])
    )
    return ((jnp.take_along_axis(ordered, low, 0) + jnp.take_along_axis(ordered, high, 0)) / 2)[0]


def trimmed_mean(trim: float = 0.2) -> Rule:
    """Mean of every coordinate without its floor(trim m) largest and smallest of m values (Yin et al. 2018).

    Raises BadFederation unless 0 <= trim < 1/2.

    References:
        Yin et al. 2018, https://arxiv.org/abs/1803.01498
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
    """The upload with the smallest sum of squared distances to its m - f - 2 nearest (Blanchard et al. 2017).

    References:
        Blanchard et al. 2017, https://arxiv.org/abs/1703.02757
    """
    return multi_krum(byzantine, 1)


def multi_krum(byzantine: int, chosen: int) -> Rule:
    """Mean of the ``chosen`` uploads with the best Krum scores; tolerates f = ``byzantine`` of n >= 2 f + 3.

    The condition is checked against the rows n when the round is traced (BadFederation); if fewer participate, at
    least one neighbour is still counted.

    Raises:
        BadFederation: a negative ``byzantine``, or ``chosen`` below 1.

    References:
        Blanchard et al. 2017, https://arxiv.org/abs/1703.02757
    """

    if byzantine < 0 or chosen < 1:
        raise BadFederation(
            f"Krum: byzantine must be at least 0 and chosen at least 1, not {byzantine} and {chosen}."
        )

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


def geometric_median(iterations: int = 100, tolerance: float = 1e-6) -> Rule:
    """The point z with the least sum_i p_i |y_i - z| (RFA, Pillutla et al. 2022).

    Weiszfeld's steps from the weighted median of every coordinate, which less than half of the weight cannot move far,
    until a step is below ``tolerance`` times the weighted median distance of the uploads, at most ``iterations``.  At a
    point that coincides with uploads the step is that of Vardi and Zhang (2000), so it is not held fast by them.  If
    uploads with the share a < 1/2 of the weight are bad and the others lie within r of any point c, then
    |z - c| <= r (1 - a) / sqrt(1 - 2 a) (Minsker 2015, lemma 2.1).  The weights are the clients' numbers of samples.

    Raises BadFederation for less than one iteration or a tolerance that is not positive.

    References:
        Pillutla et al. 2022, https://arxiv.org/abs/1912.13445
    """
    if iterations < 1 or not tolerance > 0:
        raise BadFederation(
            "geometric median: iterations must be at least 1 and the tolerance positive, not "
            f"{iterations} and {tolerance}."
        )
    return partial(_weiszfeld, iterations, tolerance)


def _weiszfeld(iterations: int, tolerance: float, points: Array, weights: Array, present: Array) -> Array:
    start = weighted_median(points, weights, present)
    points = jnp.where(present[:, None], points, 0)
    weights = jnp.where(present, weights, 0).astype(points.dtype)
    rounding = 8 * jnp.finfo(points.dtype).eps

    def distances(z: Array) -> Array:
        return jnp.linalg.norm(points - z, axis=-1)

    def scale(distance: Array) -> Array:
        """The median distance by weight, which bad uploads with less than half of it cannot make large."""
        return weighted_median(distance[:, None], weights, present)[0]

    def pulls(z: Array, distance: Array) -> tuple[Array, Array]:
        """Weights of the uploads over their distance, and the weight of those that coincide with z."""
        here = distance <= rounding * jnp.maximum(scale(distance), jnp.linalg.norm(z))
        return jnp.where(here, 0, weights / jnp.where(here, 1, distance)), jnp.where(here, weights, 0).sum()

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, z, _ = state
        distance = distances(z)
        share, held = pulls(z, distance)
        total = share.sum()
        move = share @ points / jnp.where(total > 0, total, 1) - z
        pull = total * jnp.linalg.norm(move)
        # What coincides with z holds it with its weight; the others pull with |sum of unit vectors|.
        free = jnp.where(pull > held, 1 - held / jnp.where(pull > 0, pull, 1), 0)
        move = jnp.where(total > 0, free, 0) * move
        return number + 1, z + move, jnp.linalg.norm(move) > tolerance * scale(distance)

    state = (jnp.int32(0), start, jnp.bool_(True))
    _, z, _ = jax.lax.while_loop(lambda state: (state[0] < iterations) & state[2], step, state)
    # Steps approach an upload that is the solution slowly, so the nearest one is tried.
    nearest = points[jnp.argmin(jnp.where(present, distances(z), jnp.inf))]
    share, held = pulls(nearest, distances(nearest))
    return jnp.where(jnp.linalg.norm(share @ (points - nearest)) <= held, nearest, z)


def _sorted_present(points: Array, present: Array) -> Array:
    return jnp.sort(jnp.where(present[:, None], points, jnp.inf), axis=0)
