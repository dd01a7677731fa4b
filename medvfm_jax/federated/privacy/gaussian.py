"""Exact privacy of the Gaussian mechanism without sampling, in closed form; needs no extra package."""

import math

from scipy import optimize, stats

from medvfm_jax.federated.privacy.errors import BadPrivacy


def gaussian_delta(epsilon: float, noise_multiplier: float, rounds: int = 1) -> float:
    """Smallest δ of `rounds` Gaussian releases, each with noise z × sensitivity, at ε.

    T releases are one with s = z / √T: δ(ε) = Φ(1/(2s) - ε s) - e^ε Φ(-1/(2s) - ε s).
    Source: Balle & Wang, Improving the Gaussian Mechanism for Differential Privacy, ICML 2018, theorem 8.
    """
    _check(noise_multiplier, rounds)
    if noise_multiplier == 0:
        return 1.0
    s = noise_multiplier / math.sqrt(rounds)
    # e^ε Φ(-x) in the logarithm: for small noise e^ε overflows where the product is tiny.
    second = math.exp(min(0.0, epsilon + stats.norm.logcdf(-1 / (2 * s) - epsilon * s)))
    return max(0.0, float(stats.norm.cdf(1 / (2 * s) - epsilon * s)) - second)


def gaussian_epsilon(delta: float, noise_multiplier: float, rounds: int = 1) -> float:
    """Smallest ε >= 0 at which the releases of `gaussian_delta` have at most `delta`; infinite without noise."""
    _check(noise_multiplier, rounds)
    if noise_multiplier == 0:
        return math.inf
    if gaussian_delta(0.0, noise_multiplier, rounds) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, noise_multiplier, rounds) > delta:
        high *= 2

    def excess(epsilon: float) -> float:
        return gaussian_delta(epsilon, noise_multiplier, rounds) - delta

    return float(optimize.brentq(excess, 0.0, high, xtol=1e-13, rtol=1e-13))


def _check(noise_multiplier: float, rounds: int) -> None:
    if noise_multiplier < 0 or rounds < 1:
        raise BadPrivacy(
            f"noise multiplier {noise_multiplier} over {rounds} rounds is not a mechanism; expected at least 0 and 1"
        )
