"""Does a prediction have the order of what was measured: Spearman's correlation, with an interval."""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

EXACT = 8  # up to so many pairs all orders are looked at


class RankAgreement(NamedTuple):
    """Of predictions with measurements of the same things.

    Attributes:
        rho: Spearman's correlation; NaN where one side is constant or there are fewer than three pairs.
        low: of the 95 % interval, from resampled pairs; NaN as rho.
        high: the other end.
        p: probability of as high an absolute correlation if all orders were equally likely; NaN as rho.
        n: pairs.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int


def rank_agreement(
    predicted: ArrayLike, measured: ArrayLike, *, draws: int = 2000, seed: int = 0
) -> RankAgreement:
    """Spearman's rank correlation of n pairs, with a percentile interval and a permutation test.

    Args:
        predicted: (n,).
        measured: (n,).
        draws: resamples of the pairs, and orders where n is above 8; below, all orders are looked at.
        seed: of both.

    Returns:
        The correlation; ties have their mean rank. With few pairs the interval is wide, which is as it should be;
        resamples that are constant on one side are left out.

    Raises:
        ValueError: sides of different length, or numbers that are not finite.

    References:
        Spearman 1904, https://doi.org/10.2307/1412159; Efron 1979, https://doi.org/10.1214/aos/1176344552.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(
            f"predictions have shape {x.shape} and measurements {y.shape}; they must be (n,) both"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a prediction or a measurement is not finite")
    n, nothing = len(x), float("nan")
    rho = float(_spearman(x, y))
    if n < 3 or np.isnan(rho):
        return RankAgreement(nothing, nothing, nothing, nothing, n)
    rng = np.random.default_rng(seed)
    picks = rng.integers(n, size=(draws, n))
    resampled = _spearman(x[picks], y[picks])
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    few = n <= EXACT
    orders = (
        list(itertools.permutations(range(n))) if few else rng.permuted(np.tile(range(n), (draws, 1)), axis=1)
    )
    by_chance = _spearman(x[np.array(orders)], y)
    extreme = int((np.abs(by_chance) >= abs(rho) - 1e-12).sum())
    # the order that was found counts among those that were drawn
    p = extreme / len(by_chance) if few else (extreme + 1) / (draws + 1)
    return RankAgreement(rho, float(low), float(high), float(p), n)


def _spearman(x: NDArray, y: NDArray) -> NDArray:
    """Along the last axis; NaN where a side is constant."""
    a, b = (rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (x, y))
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.where(size > 0, (a * b).sum(-1) / np.where(size > 0, size, 1), np.nan)
