"""Poisson sampling with static shapes: who takes part in a step, as amplification by sampling assumes it."""

import jax
import jax.numpy as jnp
from jax import Array
from scipy import stats

from medvfm_jax.federated.privacy.errors import BadPrivacy


def poisson_participation(key: Array, rate: float, population: int) -> Array:
    """-> (population,) bool, each True with probability `rate`, independently: the mask of one round."""
    return jax.random.bernoulli(key, rate, (population,))


def poisson_batch(key: Array, rate: float, population: int, capacity: int) -> tuple[Array, Array, Array]:
    """-> indices (capacity,) int32, mask (capacity,) bool, overflowed () bool: a Poisson sample in a static batch.

    Masked-out positions hold index 0 and must contribute nothing. When more than `capacity` are drawn, a random
    `capacity` of them stay; `capacity_for` makes that rare enough to be paid for in δ. Neither the mask nor
    `overflowed` is private.
    """
    drawn_key, order_key = jax.random.split(key)
    drawn = poisson_participation(drawn_key, rate, population)
    order = jnp.argsort(jnp.where(drawn, jax.random.uniform(order_key, (population,)), 2.0))[:capacity]
    order = jnp.pad(order, (0, max(0, capacity - population)))
    count = drawn.sum()
    mask = jnp.arange(capacity) < jnp.minimum(count, capacity)
    return jnp.where(mask, order, 0).astype(jnp.int32), mask, count > capacity


def capacity_for(rate: float, population: int, steps: int, failure: float = 1e-10) -> int:
    """Smallest batch that overflows in none of `steps` Poisson draws, but with probability `failure`."""
    if not 0 < rate <= 1 or population < 1 or steps < 1 or not 0 < failure < 1:
        raise BadPrivacy(
            f"cannot size a batch for rate {rate:g} of {population} over {steps} steps with failure {failure:g}; "
            "expected a rate in (0, 1], at least one record and step, and a failure probability in (0, 1)"
        )
    # isf returns the smallest k with P(count > k) <= failure / steps; the union bound covers the steps.
    return max(1, int(stats.binom.isf(failure / steps, population, rate)))
