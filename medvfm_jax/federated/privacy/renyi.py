"""Rényi differential privacy as curves: integer orders α -> divergence, composed by adding, converted to (ε, δ).

The curves dp-accounting has no event for (`discrete_accounting`) go through here; `poisson_gaussian` is our own
computation of what its RDP accountant computes, a second opinion.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import special

Curve = Callable[[float], float]  # α -> RDP of one release

ORDERS = (*range(2, 129), 160, 192, 256, 384, 512, 1024)


def gaussian(noise_multiplier: float) -> Curve:
    """α -> α / (2 z²)."""
    return lambda order: order / (2 * noise_multiplier**2)


def poisson_gaussian(rate: float, noise_multiplier: float) -> Curve:
    """Integer α -> exact RDP of the Poisson-sampled Gaussian, add or remove one.

    (α - 1)⁻¹ log Σ_k C(α, k) (1 - q)^{α-k} q^k exp((k² - k) / (2 z²)).
    Source: Mironov, Talwar & Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism, 2019, §3.3.
    """
    if rate == 1:
        return gaussian(noise_multiplier)

    def curve(order: float) -> float:
        k = np.arange(order + 1)
        log_terms = _log_binomial(order, k) + (order - k) * math.log1p(-rate) + k * math.log(rate)
        return float(special.logsumexp(log_terms + (k * k - k) / (2 * noise_multiplier**2))) / (order - 1)

    return curve


def poisson_sampled(rate: float, curve: Curve) -> Curve:
    """Curve of any mechanism -> integer α -> bound on the curve of the same mechanism on a Poisson sample.

    Source: Zhu & Wang, Poisson Subsampled Rényi Differential Privacy, ICML 2019, theorem 5.
    """
    if rate == 1:
        return curve

    def sampled(order: float) -> float:
        k = np.arange(3, order + 1)
        log_q, log_p = math.log(rate), math.log1p(-rate)
        terms = [
            (order - 1) * log_p + math.log(order * rate - rate + 1),
            math.log(math.comb(int(order), 2)) + 2 * log_q + (order - 2) * log_p + curve(2),
            *(
                math.log(3) + _log_binomial(order, k) + (order - k) * log_p + k * log_q
                + (k - 1) * np.array([curve(x) for x in k])
            ),
        ]  # fmt: skip
        # Sampling cannot hurt, so the curve itself is a bound too.
        return min(float(special.logsumexp(terms)) / (order - 1), curve(order))

    return sampled


def epsilon_of(
    curve: Curve,
    rounds: int,
    delta: float,
    conversion: Literal["tight", "classic"] = "tight",
    orders: Sequence[float] = ORDERS,
) -> float:
    """`rounds` releases of a curve -> ε at δ, the best over the orders.

    tight: RDP + log((α - 1) / α) - (log δ + log α) / (α - 1) (Canonne, Kamath & Steinke, NeurIPS 2020, prop. 12).
    classic: RDP + log(1 / δ) / (α - 1) (Mironov, CSF 2017, prop. 3), which older papers and tools quote.
    """
    best = math.inf
    for order in orders:
        if conversion == "classic":
            epsilon = rounds * curve(order) + math.log(1 / delta) / (order - 1)
        else:
            slack = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
            epsilon = rounds * curve(order) + slack
        best = min(best, epsilon)
    return max(0.0, best)


def _log_binomial(n: float, k: np.ndarray) -> np.ndarray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
