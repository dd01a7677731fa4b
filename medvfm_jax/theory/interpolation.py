"""The loss along the straight line between two trained models: whether there is a barrier between them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvfm_jax.types import MedvfmError


class NoLine(MedvfmError, ValueError):
    """Losses along a line that say nothing."""


class Barrier(NamedTuple):
    """How much worse than its ends the line between two models is.

    Attributes:
        height: largest excess of the mean loss over the straight line between the losses at both ends; 0 at an end
            where the loss lies below that line everywhere.
        error: standard error of the excess there over images; None with a single image.
        at: where, from 0 (the first model) to 1.
        losses: mean loss at every place.
    """

    height: float
    error: float | None
    at: float
    losses: NDArray[np.float64]


def barrier_between(losses: ArrayLike, places: ArrayLike) -> Barrier:
    """The loss barrier of a line.

    Args:
        losses: (images, k), of each image at each place.
        places: (k,), from 0 to 1, both ends among them, ascending.

    Returns:
        The barrier.

    Raises:
        NoLine: losses that are not finite, or places that do not run from 0 to 1.

    References:
        Frankle et al. 2020, https://arxiv.org/abs/1912.05671 (linear mode connectivity); Entezari et al. 2022,
        https://arxiv.org/abs/2110.06296, definition 1.
    """
    each, t = np.asarray(losses, np.float64), np.asarray(places, np.float64)
    if len(t) < 3 or t[0] != 0 or t[-1] != 1 or (np.diff(t) <= 0).any():
        raise NoLine("A line needs at least three places, from 0 to 1 and ascending.")
    if not np.isfinite(each).all():
        raise NoLine(
            "The loss between the two models is not finite everywhere; one of them may have diverged."
        )
    excess = each - ((1 - t) * each[:, :1] + t * each[:, -1:])
    mean = excess.mean(0)
    highest = int(mean.argmax())
    count = len(each)
    error = None if count == 1 else float(excess[:, highest].std(ddof=1) / np.sqrt(count))
    return Barrier(float(mean[highest]), error, float(t[highest]), each.mean(0))
