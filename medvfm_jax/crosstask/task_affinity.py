"""Which tasks help each other: products of their gradients, losses after a step along another's, and groups."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError

MOST_TASKS = 10  # whose partitions are all looked at: 115975


class UndefinedAffinity(MedvfmError, ValueError):
    """Tasks between which no affinity can be computed."""


def cosines(gram: NDArray) -> NDArray[np.float64]:
    """Cosines of gradients; below 0, a step for one task raises the loss of the other.

    Args:
        gram: (N, N) products of the gradients.

    Returns:
        (N, N).

    Raises:
        UndefinedAffinity: a gradient of zero, or one that is not finite.
    """
    gram = _checked(gram)
    lengths = np.sqrt(np.diagonal(gram))
    if not (lengths > 0).all():
        raise UndefinedAffinity(
            f"The gradient of task {int(np.argmin(lengths))} is zero, so it has no direction: choose another start or "
            "another loss for it."
        )
    found = gram / np.outer(lengths, lengths)
    return np.clip((found + found.T) / 2, -1, 1)


def gradient_diversity(gram: NDArray) -> float:
    """Sum of squared lengths over the squared length of the sum: 1/N for equal gradients, 1 for orthogonal ones.

    Args:
        gram: (N, N) products of the gradients.

    Returns:
        The ratio, infinite where gradients cancel.

    Raises:
        UndefinedAffinity: all gradients are zero, or one is not finite.

    References:
        Yin et al. 2018, https://arxiv.org/abs/1706.05699
    """
    gram = _checked(gram)
    trace, together = float(np.trace(gram)), float(gram.sum())
    if not trace > 0:
        raise UndefinedAffinity(
            "All gradients are zero, so their diversity is not defined: choose another start."
        )
    return trace / together if together > 1e-12 * trace else float("inf")


def dissimilarity(gram: NDArray) -> float:
    """B^2: mean squared length over the squared length of the mean; 1 for equal gradients, N times the diversity.

    Args:
        gram: (N, N) products of the gradients.

    Returns:
        The ratio, infinite where gradients cancel.

    Raises:
        UndefinedAffinity: all gradients are zero, or one is not finite.

    References:
        Li et al. 2020 (FedProx), https://arxiv.org/abs/1812.06127
    """
    return len(gram) * gradient_diversity(gram)


def lookahead_affinity(before: NDArray, after: NDArray) -> NDArray[np.float64]:
    """1 - L_j(theta - eta g_i) / L_j(theta): the share of task j's loss that a step for task i takes away.

    Args:
        before: (N,) losses at theta.
        after: (N, N), loss of task j (column) after a step along the gradient of task i (row).

    Returns:
        (N, N) affinity of i onto j.

    Raises:
        UndefinedAffinity: a loss that is not positive, or not finite.

    References:
        Fifty et al. 2021 (TAG), https://arxiv.org/abs/2109.04617
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if not (np.isfinite(before).all() and np.isfinite(after).all() and (before > 0).all()):
        raise UndefinedAffinity(
            "A task's loss is not a positive number, so no share of it can be taken away."
        )
    return 1 - after / before


def clusters(similarity: NDArray, threshold: float = 0.0) -> list[list[int]]:
    """Split tasks in two where the largest similarity across is least, again and again while it is below a threshold.

    What is left are the connected parts of the graph of similarities at or above it.

    Args:
        similarity: (N, N), cosines of gradients for clustered federated learning.
        threshold: below it, groups are kept apart.

    Returns:
        Groups of numbers, in order of their first.

    References:
        Sattler et al. 2019 (clustered federated learning), https://arxiv.org/abs/1910.01991.  Differs: the threshold is
        given instead of estimated from the noise of the gradients.
    """
    left, found = list(range(len(similarity))), []
    while left:
        group, border = [left[0]], [left[0]]
        left = left[1:]
        while border:
            one = border.pop()
            near = [i for i in left if similarity[one][i] >= threshold]
            left = [i for i in left if i not in near]
            group, border = group + near, border + near
        found.append(sorted(group))
    return found


def best_groups(affinity: NDArray, most: int | None = None) -> list[list[int]]:
    """The partition in which tasks get most from the others of their group: the sum over j of the mean affinity onto j.

    A task alone gets nothing. All partitions are looked at; of equal ones that with fewer groups is taken.

    Args:
        affinity: (N, N) of i (row) onto j (column); the diagonal is not looked at.
        most: groups, at most; None for any number.

    Returns:
        Groups of numbers, in order of their first.

    Raises:
        UndefinedAffinity: more than `MOST_TASKS` tasks.

    References:
        Fifty et al. 2021 (TAG), https://arxiv.org/abs/2109.04617
    """
    affinity, n = np.asarray(affinity, np.float64), len(affinity)
    if n > MOST_TASKS:
        raise UndefinedAffinity(
            f"{n} tasks have too many partitions to look at each: take at most {MOST_TASKS}, or group by cosine."
        )

    def value(groups: list[list[int]]) -> float:
        inside = (affinity[np.ix_(group, group)] for group in groups if len(group) > 1)
        return sum(float((block.sum() - np.trace(block)) / (len(block) - 1)) for block in inside)

    rated = ((value(groups), -len(groups), groups) for groups in _partitions(n, most or n))
    best = max(rated, key=lambda one: (round(one[0], 12), one[1]))
    return best[2]


def _partitions(n: int, most: int) -> Iterator[list[list[int]]]:
    """Every way to divide range(n) into at most so many groups."""
    if n == 0:
        yield []
        return
    for groups in _partitions(n - 1, most):
        for i in range(len(groups)):
            yield [*groups[:i], [*groups[i], n - 1], *groups[i + 1 :]]
        if len(groups) < most:
            yield [*groups, [n - 1]]


def _checked(gram: NDArray) -> NDArray[np.float64]:
    gram = np.asarray(gram, np.float64)
    if len(gram) < 2:
        raise UndefinedAffinity("There is one task, and none to compare it with: give two or more.")
    if not np.isfinite(gram).all():
        raise UndefinedAffinity("A gradient is not finite; check the data (medvfm check) and the weights.")
    return gram
