"""How well a linear probe tells two domains apart: the proxy A-distance."""

import numpy as np
from numpy.typing import ArrayLike


def proxy_a_distance(x: ArrayLike, first: ArrayLike, folds: int = 5) -> float:
    """2 (1 - 2 e), e the error of a ridge classifier on examples it was not fitted on, both domains counting half.

    Args:
        x: features (n, d).
        first: (n,) which examples are of the first domain; two at least of each.
        folds: parts of each domain, each held out once; as many as the smaller domain has, if it has fewer.

    Returns:
        About 0 for one distribution (below 0 at times), 2 for domains that a hyperplane separates.

    References:
        Ben-David et al. 2010, https://doi.org/10.1007/s10994-009-5152-4, section 4; Ganin et al., JMLR 2016,
        https://arxiv.org/abs/1505.07818, section 3.2.
    """
    x, first = np.asarray(x, np.float64), np.asarray(first, bool)
    fold = np.empty(len(x), int)
    folds = min(folds, int(first.sum()), int((~first).sum()))
    for part in (first, ~first):
        fold[part] = np.arange(part.sum()) % folds
    wrong = np.zeros(len(x))
    for held in (fold == number for number in range(folds)):
        a, b = x[first & ~held], x[~first & ~held]
        middle = (a.mean(0) + b.mean(0)) / 2
        fitted = np.concatenate([a, b]) - middle
        target = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
        gram = fitted @ fitted.T
        penalty = np.trace(gram) / len(gram)  # the mean of its eigenvalues
        if penalty > 0:
            duals = np.linalg.solve(gram + penalty * np.eye(len(gram)), target)
            answer = (x[held] - middle) @ (fitted.T @ duals)
        else:
            answer = np.zeros(held.sum())
        wrong[held] = np.where(answer == 0, 0.5, (answer > 0) != first[held])
    return float(2 * (1 - wrong[first].mean() - wrong[~first].mean()))
