"""Integer noise: Skellam and the discrete Gaussian, sampled inside jit.

Simulation grade: the generator is threefry, not a cryptographic one, and the discrete Gaussian is tabulated with
64-bit probabilities, so events rarer than 2^-64 never happen.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.core.backends import vary_like
from medvfm_jax.federated.privacy.errors import BadPrivacy

_WIDTH = 12  # standard deviations tabulated on each side; beyond lie 1e-32 of the mass


def skellam(key: Array, shape: tuple[int, ...], variance: float) -> Array:
    """-> int32 of the shape: difference of two Poisson variables of mean variance / 2, so closed under addition."""
    if not variance > 0:
        raise BadPrivacy(f"the Skellam variance is {variance}; it must be above zero")
    # Inside shard_map the sampler's loops need a mean that varies over clients as the key does.
    mean = vary_like(jnp.full(shape, variance / 2, jnp.float32), jax.random.key_data(key))
    plus, minus = (jax.random.poisson(k, mean, shape, jnp.int32) for k in jax.random.split(key))
    return plus - minus


def discrete_gaussian(key: Array, shape: tuple[int, ...], variance: float) -> Array:
    """-> int32 of the shape, P(k) ∝ exp(-k² / (2 variance)): a magnitude by bisection in a table, and a sign.

    `variance` is the σ² of the formula, a Python number: the table of 12 σ entries is a constant of the program.
    """
    high, low = (jnp.asarray(words) for words in _tail_words(variance))
    words = jax.random.bits(key, (3, *shape), jnp.uint32)
    size = high.shape[0]

    # |X| = number of m >= 1 with u < P(|X| >= m), which falls with m; u is 64 random bits.
    def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = interval
        middle = (left + right) // 2
        at = jnp.minimum(middle, size - 1)
        inside = (words[0] < high[at]) | ((words[0] == high[at]) & (words[1] < low[at]))
        inside &= left < right
        return jnp.where(inside, middle + 1, left), jnp.where(inside, right, middle)

    start = (jnp.zeros(shape, jnp.int32), jnp.full(shape, size, jnp.int32))
    magnitude, _ = jax.lax.fori_loop(0, size.bit_length() + 1, halve, vary_like(start, words))
    return jnp.where(words[2] & 1, magnitude, -magnitude)


def discrete_gaussian_pmf(variance: float) -> tuple[np.ndarray, np.ndarray]:
    """-> the integers (n,) within 12 standard deviations and their probabilities (n,) float64."""
    if not 0 < variance <= 1e8:
        raise BadPrivacy(f"the discrete Gaussian's variance is {variance:g}; expected above 0 and up to 1e8")
    reach = max(1, int(np.ceil(_WIDTH * np.sqrt(variance))))
    support = np.arange(-reach, reach + 1)
    weight = np.exp(-(support.astype(np.float64) ** 2) / (2 * variance))
    return support, weight / weight.sum()


def _tail_words(variance: float) -> tuple[np.ndarray, np.ndarray]:
    """P(|X| >= m), m = 1..reach, in units of 2^-64, as two 32-bit words: small tails keep their relative precision."""
    support, probability = discrete_gaussian_pmf(variance)
    tail = 2 * np.cumsum(probability[support < 0])[::-1]
    scaled = [min(int(p * 2.0**64), 2**64 - 1) for p in tail]
    words = np.array([[s >> 32, s & 0xFFFFFFFF] for s in scaled], np.uint32)
    return words[:, 0], words[:, 1]
