"""How much of its input one place of a map depends on: the effective receptive field."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray


class Extent(NamedTuple):
    """Size of a receptive field, in pixels of the input.

    Attributes:
        height: standard deviation along the height, around the place looked at.
        width: the same along the width.
        square: side of the smallest square around the place that holds 95 % of the weight.
    """

    height: float
    width: float
    square: float


def squared_gradient(encode: Callable[[Array], Array], image: Array, place: Array, key: Array) -> Array:
    """Squared derivatives of a place of a map with respect to each pixel, summed over the map's channels.

    Of a random sign for each channel of the map, the square of one vector-Jacobian product has that sum as its
    expectation; average over keys.

    Args:
        encode: image (H, W, C) -> map (h, w, c).
        image: (H, W, C).
        place: (2,) row and column of the map.
        key: of the signs.

    Returns:
        (H, W), summed over the channels of the image.

    References:
        Luo et al., NeurIPS 2016, https://arxiv.org/abs/1701.04128, section 2.
    """
    found, pull = jax.vjp(encode, image)
    sign = jax.random.rademacher(key, found.shape[-1:], found.dtype)
    (gradient,) = pull(jnp.zeros_like(found).at[place[0], place[1]].set(sign))
    return jnp.square(gradient).sum(-1)


def extent(weights: ArrayLike, centre: ArrayLike) -> Extent:
    """Size of a receptive field.

    Args:
        weights: (H, W) magnitude of the derivatives, the root of ``squared_gradient`` or of its mean over images.
        centre: (2,) of the place, in pixels; the middle of the first pixel is (0, 0).

    Returns:
        Of n convolutions with equal weights of k pixels a variance of n (k^2 - 1) / 12.

    Raises:
        ValueError: weights that are not finite, or all 0.

    References:
        Luo et al., NeurIPS 2016, https://arxiv.org/abs/1701.04128, section 2.2.
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or not weights.sum() > 0:
        raise ValueError("the place depends on no pixel, or its derivatives are not finite")
    weights = weights / weights.sum()
    rows, columns = (np.arange(n) - c for n, c in zip(weights.shape, np.asarray(centre, np.float64)))
    height, width = (
        float((w @ np.square(at)) ** 0.5) for w, at in ((weights.sum(1), rows), (weights.sum(0), columns))
    )
    distance = np.maximum(np.abs(rows)[:, None], np.abs(columns))
    return Extent(height, width, 2 * _quantile(distance.ravel(), weights.ravel(), 0.95) + 1)


def _quantile(values: NDArray, weights: NDArray, share: float) -> float:
    """Least of the values below or at which so much of the weight lies."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), share - 1e-12)])
