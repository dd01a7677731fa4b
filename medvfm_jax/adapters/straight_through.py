"""Rounding that a gradient passes through as if nothing had been rounded."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@jax.custom_jvp
def _nearest(x: Array) -> Array:
    return jnp.round(x)


@_nearest.defjvp
def _pass_on(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _nearest(*primals), tangents[0]


def nearest(x: Any) -> Any:
    """The nearest whole numbers to x (halves to even), whose derivative by x is taken as 1.

    Of y = nearest(clip(x / s)) s with whole ends the derivative by x is then 1 between the ends and 0 beyond, and that
    by s is nearest(x / s) - x / s between the ends and the end beyond, which is what learned step sizes need. Of a
    numpy array a numpy array, so that nothing is compiled.

    References:
        Bengio et al. 2013, https://arxiv.org/abs/1308.3432 (straight through); Esser et al. 2020, "Learned Step Size
        Quantization", https://arxiv.org/abs/1902.08153, equation 3.
    """
    return np.round(x) if isinstance(x, np.ndarray | np.generic) else _nearest(jnp.asarray(x))
