"""An empirical lower bound on ε: insert a canary or not, guess from the output which, count how often it is right.

An accountant gives an upper bound that holds if the code does what it was told; the audit a lower bound on what the
code does. A lower bound above the claimed ε means a bug. A low one proves nothing.
Source: Jagielski, Ullman & Oprea, Auditing Differentially Private Machine Learning, NeurIPS 2020; Nasr et al., USENIX
Security 2023.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike
from scipy import stats

from medvfm_jax.federated.core.records import Tree
from medvfm_jax.federated.privacy.errors import BadPrivacy


class Audit(NamedTuple):
    """Lower bound on ε at δ, valid with the stated confidence, and the counts it rests on.

    Attributes:
        epsilon: lower bound on ε.
        delta: δ of the claim.
        confidence: probability with which the bound holds, over the runs.
        threshold: scores above it are taken for runs with the canary.
        hits: runs with the canary that were recognised, of how many.
        false_alarms: runs without it taken for runs with it, of how many.
    """

    epsilon: float
    delta: float
    confidence: float
    threshold: float
    hits: tuple[int, int]
    false_alarms: tuple[int, int]

    def contradicts(self, claimed_epsilon: float) -> bool:
        """Whether the claim is refuted at this confidence; False does not confirm it."""
        return self.epsilon > claimed_epsilon


def canary_update(key: Array, like: Tree, norm: float) -> Tree:
    """A random direction like the update, of l2 norm `norm`: the clip, where one client's effect is largest.

    Args:
        key: of the direction.
        like: pytree of arrays or shapes, an update.
        norm: l2 norm.

    Returns:
        The canary, float32 leaves.
    """
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    drawn = [jax.random.normal(k, jnp.shape(x), jnp.float32) for k, x in zip(keys[: len(leaves)], leaves)]
    length = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in drawn))
    return jax.tree.unflatten(structure, [norm * x / length for x in drawn])


def canary_scores(
    release: Callable[[Array, Tree], Tree], canary: Tree, trials: int, key: Array, batch: int = 64
) -> tuple[Array, Array]:
    """Scores of a mechanism that runs with a canary, and without it.

    The score is the release's component along the canary. Jittable.

    Args:
        release: (key, update) -> what the adversary sees: the whole mechanism, or all rounds of a federation, with
            `update` as the (unclipped) upload of one client more.
        canary: the update; runs without it get zeros.
        trials: runs of each kind.
        key: of all randomness; each run has its own.
        batch: trials computed at a time.

    Returns:
        Scores (trials,) of runs with the canary and (trials,) of runs without.
    """
    squared = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(canary))

    def score(present: Array, key: Array) -> Array:
        seen = release(key, jax.tree.map(lambda x: jnp.where(present, x, 0), canary))
        along = jax.tree.map(lambda a, b: jnp.sum(a * b), seen, canary)
        return sum(jax.tree.leaves(along)) / squared

    present = jnp.arange(2 * trials) < trials
    scores = jax.lax.map(lambda x: score(*x), (present, jax.random.split(key, 2 * trials)), batch_size=batch)
    return scores[:trials], scores[trials:]


def epsilon_lower_bound(
    with_canary: ArrayLike,
    without: ArrayLike,
    delta: float,
    confidence: float = 0.95,
    threshold: float | None = None,
) -> Audit:
    """Lower bound on ε from an attack.

    (ε, δ) allows hits <= e^ε false alarms + δ and its mirror image; Clopper-Pearson bounds of both rates, each at
    half of 1 - confidence, turn that around.

    Args:
        with_canary: scores (n,) of independent runs with the canary.
        without: scores (m,) of independent runs without it.
        delta: δ of the claim.
        confidence: probability with which the bound holds.
        threshold: fixed before the runs; None: chosen on the first half of the runs and tested on the second, since
            choosing and testing on the same runs would be no bound.

    Returns:
        The bound and the counts.

    Raises:
        BadPrivacy: fewer than two runs of a kind, or a confidence or delta that is no probability.
    """
    with_canary, without = np.asarray(with_canary, float).ravel(), np.asarray(without, float).ravel()
    if min(with_canary.size, without.size) < 2 or not 0 < confidence < 1 or not 0 <= delta < 1:
        raise BadPrivacy(
            f"an audit needs at least two runs of each kind (got {with_canary.size} and {without.size}), a confidence "
            f"in (0, 1) (got {confidence}) and delta in [0, 1) (got {delta})"
        )
    if threshold is None:
        half, other = with_canary.size // 2, without.size // 2
        threshold = _best_threshold(with_canary[:half], without[:other], delta, confidence)
        with_canary, without = with_canary[half:], without[other:]
    hits = (int((with_canary > threshold).sum()), with_canary.size)
    alarms = (int((without > threshold).sum()), without.size)
    epsilon = float(_bound(*map(np.asarray, (*hits, *alarms)), delta, confidence))
    return Audit(epsilon, delta, confidence, float(threshold), hits, alarms)


def clopper_pearson(
    successes: ArrayLike, trials: ArrayLike, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """-> one-sided lower and upper bounds of a probability, each right with at least `confidence`.

    Together they are the usual two-sided interval of confidence 2 × confidence - 1.
    """
    k, n = np.asarray(successes), np.asarray(trials)
    miss = 1 - confidence
    lower = np.where(k == 0, 0.0, stats.beta.ppf(miss, np.maximum(k, 1), n - np.maximum(k, 1) + 1))
    upper = np.where(
        k == n, 1.0, stats.beta.ppf(1 - miss, np.minimum(k, n - 1) + 1, n - np.minimum(k, n - 1))
    )
    return lower, upper


def _bound(
    hits: np.ndarray, n: np.ndarray, alarms: np.ndarray, m: np.ndarray, delta: float, confidence: float
) -> np.ndarray:
    side = 1 - (1 - confidence) / 2
    hit_rate, _ = clopper_pearson(hits, n, side)
    _, alarm_rate = clopper_pearson(alarms, m, side)
    tiny = math.ulp(0.0)
    direct = np.log(np.maximum(hit_rate - delta, tiny)) - np.log(alarm_rate)
    mirrored = np.log(np.maximum(1 - alarm_rate - delta, tiny)) - np.log(1 - hit_rate)
    return np.maximum(0.0, np.maximum(direct, mirrored))


def _best_threshold(with_canary: np.ndarray, without: np.ndarray, delta: float, confidence: float) -> float:
    """The midpoint between neighbouring scores at which the bound would be largest."""
    scores = np.unique(np.concatenate([with_canary, without]))
    if scores.size == 1:
        return float(scores[0])
    candidates = (scores[1:] + scores[:-1]) / 2
    if candidates.size > 2000:  # quantiles suffice: the bound changes little from one score to the next
        candidates = np.quantile(candidates, np.linspace(0, 1, 2000))
    hits = with_canary.size - np.searchsorted(np.sort(with_canary), candidates, side="right")
    alarms = without.size - np.searchsorted(np.sort(without), candidates, side="right")
    sizes = np.full(candidates.shape, with_canary.size), np.full(candidates.shape, without.size)
    return float(candidates[np.argmax(_bound(hits, sizes[0], alarms, sizes[1], delta, confidence))])
