"""What gradients of single images say of each weight: their mean, and how much of it is more than noise."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TooFewImages(ValueError):
    """A spread was asked for of fewer than two images."""


class Moments(NamedTuple):
    """Of the gradients g_i of n images with respect to one weight matrix.

    Attributes:
        mean: (in, out), their mean.
        fisher: mean of |g_i|^2, the trace of the empirical Fisher information on these labels (Kunstner et al. 2019,
            https://arxiv.org/abs/1905.12558, on how it differs from the true one).
        fisher_error: its standard error.
        signal: estimate without bias of the squared norm of the expected gradient; below 0 where all is noise.
        images: n.
    """

    mean: NDArray[np.float32]
    fisher: float
    fisher_error: float
    signal: float
    images: int


def moments(gradients: Iterable[Mapping[str, NDArray]]) -> dict[str, Moments]:
    """Gradients of one image after the other -> moments of each weight; one image is held at a time.

    Args:
        gradients: {path: (..., in, out)} of every image; leading axes are taken into "in".

    Returns:
        {path: moments}.

    Raises:
        TooFewImages: fewer than two images.
    """
    total: dict[str, NDArray] = {}
    norms: dict[str, list[float]] = {}
    for gradient in gradients:
        for path, array in gradient.items():
            matrix = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
            total[path] = total[path] + matrix if path in total else matrix
            norms.setdefault(path, []).append(float(np.vdot(matrix, matrix)))
    found = {}
    for path, summed in total.items():
        n, squares = len(norms[path]), np.array(norms[path])
        if n < 2:
            raise TooFewImages("Moments need the gradients of two images at least.")
        mean = summed / n
        fisher = squares.mean()
        # E|mean|^2 = |E g|^2 + (E|g|^2 - |E g|^2) / n, solved for |E g|^2
        signal = (n * float(np.vdot(mean, mean)) - fisher) / (n - 1)
        error = squares.std(ddof=1) / n**0.5
        found[path] = Moments(mean.astype(np.float32), float(fisher), float(error), float(signal), n)
    return found
