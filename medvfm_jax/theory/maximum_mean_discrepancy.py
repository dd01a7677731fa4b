"""Maximum mean discrepancy of two samples, with a Gaussian kernel."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def gaussian_kernel(x: ArrayLike, width: float | None = None) -> NDArray[np.float64]:
    """exp(-|a - b|^2 / (2 width^2)) of every pair of examples.

    Args:
        x: features (n, d), finite.
        width: by default the median distance of two examples.

    Returns:
        (n, n).

    Raises:
        ValueError: a median distance of 0, because most examples are the same.

    References:
        Gretton et al., https://arxiv.org/abs/0805.2368 (the median heuristic; JMLR 13, 2012, section 8).
    """
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    squares = np.square(x).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0)
    if width is None:
        width = float(np.median(distances[np.triu_indices(len(x), 1)])) ** 0.5
    if not width > 0:
        raise ValueError("most examples have the same features")
    return np.exp(-distances / (2 * width**2))


def squared_mmd(kernel: ArrayLike, first: ArrayLike) -> float:
    """Squared maximum mean discrepancy without bias: 0 in expectation for one distribution, so below 0 at times.

    Args:
        kernel: of every pair of examples (n, n).
        first: (n,) which examples are of the first sample; two at least of each.

    Returns:
        Mean kernel within each sample, a pair of two different examples each, less twice the mean between them.

    References:
        Gretton et al., https://arxiv.org/abs/0805.2368 (JMLR 13, 2012, equation 3).
    """
    kernel, first = np.asarray(kernel, np.float64), np.asarray(first, bool)

    def within(part: NDArray) -> float:
        own, n = kernel[np.ix_(part, part)], part.sum()
        return (own.sum() - np.trace(own)) / (n * (n - 1))

    return float(within(first) + within(~first) - 2 * kernel[np.ix_(first, ~first)].mean())
