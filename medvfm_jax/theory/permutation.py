"""What a statistic of two samples is by chance: the same with examples dealt to the samples at random."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Tested(NamedTuple):
    """A statistic beside what it is where both samples have one distribution.

    Attributes:
        value: of the samples as they are.
        by_chance: mean over random divisions.
        p_value: share of the divisions, the given one among them, whose value is at least as large.
    """

    value: float
    by_chance: float
    p_value: float


def permutation_test(
    statistic: Callable[[NDArray[np.bool_]], float], first: ArrayLike, count: int, rng: np.random.Generator
) -> Tested:
    """Compare a statistic with those of random divisions of the same examples.

    Args:
        statistic: (n,) which examples are of the first sample -> number, larger for samples that differ more.
        first: (n,) the division that is tested.
        count: random divisions, 1 at least.
        rng: draws them.

    Returns:
        The p-value is valid where examples are exchangeable, one for each patient; it is 1 / (count + 1) at least.

    References:
        Phipson and Smyth 2010, https://arxiv.org/abs/1603.05766, section 3.
    """
    first = np.asarray(first, bool)
    value = statistic(first)
    drawn = np.array([statistic(rng.permutation(first)) for _ in range(count)])
    larger = (drawn >= value - 1e-12 * abs(value)).sum()
    return Tested(float(value), float(drawn.mean()), float((1 + larger) / (1 + count)))
