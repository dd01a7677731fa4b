"""How well classes can be told from features that were not learned from: a linear probe and the nearest neighbour."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_PENALTIES = 10.0 ** np.arange(-4, 4)  # of standardised features, times the number of examples


def ridge_predictions(x: ArrayLike, classes: ArrayLike, asked: ArrayLike) -> NDArray:
    """Classes by least squares on "is of this class", the penalty by generalised cross-validation.

    Args:
        x: features to learn from (n, d).
        classes: their classes (n,).
        asked: features to be told the class of (m, d).

    Returns:
        (m,) classes.

    References:
        Golub et al. 1979, https://doi.org/10.1080/00401706.1979.10489751 (generalised cross-validation).
    """
    x, asked = _standardised(x, asked)
    found, member = np.unique(np.asarray(classes), return_inverse=True)
    targets = np.eye(len(found))[member]
    mean = targets.mean(0)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    seen = left.T @ (targets - mean)
    total, n = float(((targets - mean) ** 2).sum()), len(x)
    errors = []
    for penalty in n * _PENALTIES:
        kept = values**2 / (values**2 + penalty)
        left_over = total - float(((2 * kept - kept**2)[:, None] * seen**2).sum())
        errors.append(left_over / max(n - 1 - kept.sum(), 1e-9) ** 2)  # the mean takes one degree of freedom
    penalty = n * _PENALTIES[int(np.argmin(errors))]
    scores = asked @ (right.T * (values / (values**2 + penalty))) @ seen + mean
    return found[scores.argmax(1)]


def neighbour_predictions(x: ArrayLike, classes: ArrayLike, asked: ArrayLike) -> NDArray:
    """The class of the nearest example, by Euclidean distance of standardised features.

    Args:
        x: features to learn from (n, d).
        classes: their classes (n,).
        asked: features to be told the class of (m, d).

    Returns:
        (m,) classes.
    """
    x, asked = _standardised(x, asked)
    nearest = (np.square(x).sum(1) - 2 * asked @ x.T).argmin(1)
    return np.asarray(classes)[nearest]


def held_out_accuracy(
    predict: Callable[[NDArray, NDArray, NDArray], NDArray],
    x: ArrayLike,
    classes: ArrayLike,
    groups: ArrayLike,
    folds: int,
) -> NDArray:
    """Share of right answers in each group, when its fold of groups was not learned from.

    Args:
        predict: (x, classes, asked) -> classes.
        x: features (n, d).
        classes: (n,).
        groups: number of the group (a patient) of each example (n,), from 0.
        folds: parts that the groups are divided into, group g into part g modulo ``folds``.

    Returns:
        One for each group.
    """
    x, classes, groups = np.asarray(x), np.asarray(classes), np.asarray(groups)
    right = np.zeros(len(x))
    for fold in range(folds):
        held = groups % folds == fold
        if held.any():
            right[held] = predict(x[~held], classes[~held], x[held]) == classes[held]
    return np.array([right[groups == group].mean() for group in np.unique(groups)])


def _standardised(x: ArrayLike, asked: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both less the mean of ``x``, over its deviation; features that are constant in ``x`` are left out."""
    x, asked = np.asarray(x, np.float64), np.asarray(asked, np.float64)
    spread = x.std(0)
    kept = spread > 1e-9 * max(spread.max(), 1e-300)
    return ((part[:, kept] - x[:, kept].mean(0)) / spread[kept] for part in (x, asked))
