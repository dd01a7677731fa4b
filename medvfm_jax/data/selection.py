"""Which few cases to label and train on: those that lie well spread among all, by a vector of each."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.printable import counted
from medvfm_jax.types import MedvfmError

_ROUNDS = 100  # of k-means, which stops by itself long before


class BadSelection(MedvfmError, ValueError):
    """Cases that cannot be chosen: too few, or vectors that are not finite."""


def k_center(vectors: NDArray, n: int) -> list[int]:
    """Farthest-point order: the vector nearest to the mean, then always the one farthest from all chosen before.

    The radius with which n chosen vectors cover all others is at most twice the least possible. A smaller choice is the
    beginning of a larger one.

    Args:
        vectors: (cases, c).
        n: how many to choose.

    Returns:
        n distinct row numbers, in the order of their choice; of equally distant rows the first counts.

    Raises:
        BadSelection: ``n`` is not between 1 and the number of rows, or a number is not finite.

    References:
        Gonzalez 1985, "Clustering to minimize the maximum intercluster distance",
        https://doi.org/10.1016/0304-3975(85)90224-5; for the choice of what to label: Sener and Savarese 2018,
        https://arxiv.org/abs/1708.00489 (algorithm 1). Interpretation: the first is the one nearest to the mean, where
        the papers take any.

    Examples:
        >>> k_center(np.array([[0.0], [1.0], [2.0], [10.0]]), 3)
        [2, 3, 0]
    """
    vectors = _checked(vectors, n)
    chosen = [int(_squared(vectors, vectors.mean(0)).argmin())]
    nearest = _squared(vectors, vectors[chosen[0]])
    while len(chosen) < n:
        nearest[chosen] = -1.0  # equal vectors are distinct cases
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(np.maximum(nearest, 0), _squared(vectors, vectors[chosen[-1]]))
    return chosen


def k_medoids(vectors: NDArray, n: int) -> list[int]:
    """The row nearest to each of n k-means centres, which start from ``k_center``.

    Args:
        vectors: (cases, c).
        n: how many to choose.

    Returns:
        n distinct row numbers, that of the largest cluster first.

    Raises:
        BadSelection: as ``k_center``.

    References:
        Lloyd 1982, https://doi.org/10.1109/TIT.1982.1056489. Interpretation: the medoid is the member nearest to the
        mean, not the one with the least sum of distances.
    """
    vectors = _checked(vectors, n)
    centres = vectors[k_center(vectors, n)]
    member = np.full(len(vectors), -1)
    for _ in range(_ROUNDS):
        nearest = np.stack([_squared(vectors, centre) for centre in centres]).argmin(0)
        if (nearest == member).all():
            break
        member = nearest
        # A centre without members, of equal vectors, stays where it is.
        centres = np.stack(
            [vectors[member == i].mean(0) if (member == i).any() else c for i, c in enumerate(centres)]
        )
    sizes = np.bincount(member, minlength=n)
    chosen: list[int] = []
    for i in np.argsort(-sizes, kind="stable"):
        distance = _squared(vectors, centres[i])
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return chosen


SELECTIONS: Mapping[str, Callable[[NDArray, int], list[int]]] = {"k_center": k_center, "k_medoids": k_medoids}


def _squared(vectors: NDArray, one: NDArray) -> NDArray[np.float64]:
    return ((vectors - one) ** 2).sum(1)


def _checked(vectors: NDArray, n: int) -> NDArray[np.float64]:
    vectors = np.asarray(vectors, np.float64)
    if not 1 <= n <= len(vectors):
        raise BadSelection(f"{n} cases cannot be chosen from {counted(len(vectors), 'case')}; ask for fewer.")
    if not np.isfinite(vectors).all():
        raise BadSelection("A case has features that are not finite; its image or the weights are damaged.")
    return vectors
