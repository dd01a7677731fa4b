"""Sliced Wasserstein distance: the mean over directions of the distance of what is seen along them."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def directions(features: int, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Directions drawn evenly.

    Args:
        features: d.
        count: of directions.
        rng: draws them.

    Returns:
        (d, count), of length 1.
    """
    drawn = rng.standard_normal((features, count))
    return drawn / np.linalg.norm(drawn, axis=0)


def squared_sliced_wasserstein(x: ArrayLike, y: ArrayLike) -> float:
    """Mean over directions of the squared Wasserstein distance of order 2 of two samples of numbers, exactly.

    Args:
        x: (n, p) examples along p directions.
        y: (m, p) along the same.

    Returns:
        |m - m'|^2 / d for distributions that differ by a shift, on average over directions.

    References:
        Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3.
    """
    x, y = np.sort(np.asarray(x, np.float64), axis=0), np.sort(np.asarray(y, np.float64), axis=0)
    steps = np.union1d(
        np.arange(1, len(x) + 1) * len(y), np.arange(1, len(y) + 1) * len(x)
    )  # of both quantile functions
    middle = (np.concatenate([[0], steps[:-1]]) + steps) / 2
    shares = np.diff(steps, prepend=0) / (len(x) * len(y))
    a, b = x[(middle // len(y)).astype(int)], y[(middle // len(x)).astype(int)]
    return float((shares @ np.square(a - b)).mean())
