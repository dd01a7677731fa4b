"""Scaling laws: a loss that falls with data, or parameters, to a floor, fitted to a few measured points."""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from medvfm_jax.types import MedvfmError

STARTS = (0.25, 0.5, 1.0, 2.0)  # exponents that the search begins from


class BadCurve(MedvfmError, ValueError):
    """Points to which no scaling law can be fitted."""


class ScalingLaw(NamedTuple):
    """loss = floor + sum_k amplitudes[k] * x[k] ** -exponents[k].

    Attributes:
        floor: what is left however large the factors are.
        amplitudes: (k,).
        exponents: (k,).
        error: root of the mean squared difference of logarithms at the points.
    """

    floor: float
    amplitudes: NDArray[np.float64]
    exponents: NDArray[np.float64]
    error: float

    def at(self, factors: ArrayLike) -> NDArray[np.float64]:
        """(..., k) factors, or (...) where k is 1 -> (...) predicted losses."""
        x = np.asarray(factors, np.float64)
        x = x[..., None] if len(self.exponents) == 1 and x.shape[-1:] != (1,) else x
        return self.floor + (self.amplitudes * x**-self.exponents).sum(-1)


def fit_scaling_law(
    factors: ArrayLike, losses: ArrayLike, *, huber: float = 1e-3, start: ScalingLaw | None = None
) -> ScalingLaw:
    """Least Huber loss of the logarithms, from several starts.

    Args:
        factors: (n,) or (n, k), above 0: numbers of cases, of parameters.
        losses: (n,), above 0.
        huber: differences of logarithms above it count linearly.
        start: law of similar points to search from, in place of the several starts.

    Returns:
        The law; with as many points as it has numbers, 1 + 2 k, it goes through all that a law can go through.

    Raises:
        BadCurve: fewer than 1 + 2 k points or different values of a factor than 3, or numbers that are not above 0.

    References:
        Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.3 and appendix D.3.
    """
    x, y = np.asarray(factors, np.float64), np.asarray(losses, np.float64)
    x = x[:, None] if x.ndim == 1 else x
    n, k = x.shape
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise BadCurve("A scaling law is fitted to sizes and losses above 0; a point has another.")
    if n < 1 + 2 * k or min(len(np.unique(column)) for column in x.T) < 3:
        raise BadCurve(
            f"A scaling law of {k} factor{'s' if k > 1 else ''} has {1 + 2 * k} numbers; it needs as many points, at "
            f"three sizes at least, and there are {n}."
        )
    scale = np.exp(np.log(x).mean(0))  # so that amplitudes are of the size of losses
    logs, target = np.log(x / scale), np.log(y)

    def value(p: NDArray) -> tuple[float, NDArray]:
        terms = np.concatenate([np.full((n, 1), p[0]), p[1 : 1 + k] - p[1 + k :] * logs], axis=1)
        top = terms.max(1, keepdims=True)
        weights = np.exp(terms - top)
        total = weights.sum(1)
        difference = np.log(total) + top[:, 0] - target
        size = np.abs(difference)
        loss = np.where(size <= huber, 0.5 * difference**2, huber * (size - 0.5 * huber)).sum()
        slope = np.clip(difference, -huber, huber)[:, None] * weights / total[:, None]
        gradient = np.concatenate([slope.sum(0), -(slope[:, 1:] * logs).sum(0)])
        return loss / huber**2, gradient / huber**2

    starts = []
    if start is not None:
        inner = start.amplitudes * scale**-start.exponents
        numbers = np.log(np.maximum([start.floor, *inner], 1e-12))
        starts.append(np.concatenate([numbers, start.exponents]))
    else:
        shares = (0.01, 0.3, 0.8)  # of the smallest loss that is floor
        for share, *exponents in itertools.product(shares, *[STARTS] * k):
            floor = share * y.min()
            rest = np.log(max((np.median(y) - floor) / k, 1e-3 * y.min()))
            starts.append(np.concatenate([[np.log(floor)], np.full(k, rest), exponents]))
    best = None
    for first in starts:
        bounds = [(None, None)] * (1 + k) + [(0, 10)] * k
        found = minimize(
            value, first, jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 500, "maxfun": 2000, "ftol": 1e-15, "gtol": 1e-10},
        )  # fmt: skip
        if best is None or found.fun < best.fun:
            best = found
    exponents = best.x[1 + k :]
    law = ScalingLaw(
        float(np.exp(best.x[0])), np.exp(best.x[1 : 1 + k]) * scale**exponents, exponents, float("nan")
    )
    error = float(np.sqrt(((np.log(law.at(x)) - target) ** 2).mean()))
    return law._replace(error=error)
