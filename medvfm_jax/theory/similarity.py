"""How alike two representations of the same examples are: centred kernel alignment with a linear kernel."""

import numpy as np
from numpy.typing import ArrayLike


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment from estimates without bias of the independence criterion.

    1 for features that are equal up to rotation, scale and shift, about 0 for independent ones.  The plain estimate,
    |Y'X|^2 / (|X'X| |Y'Y|), is near 1 for independent features that are more than the examples.

    Args:
        x: features (n, p) of at least 4 examples.
        y: features of the same examples (n, q).

    Returns:
        At most about 1, and below 0 at times; NaN where one side is constant.

    Raises:
        ValueError: fewer than 4 examples.

    References:
        Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414; Nguyen et al., ICLR 2021,
        https://arxiv.org/abs/2010.15327, equation 3.
    """
    k, m = (features @ features.T for features in (_centred(x), _centred(y)))
    both, first, second = _unbiased_hsic(k, m), _unbiased_hsic(k, k), _unbiased_hsic(m, m)
    return float(both / (first * second) ** 0.5) if min(first, second) > 0 else float("nan")


def _centred(features: ArrayLike) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features - features.mean(0)


def _unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    if n < 4:
        raise ValueError(f"{n} examples; an estimate without bias needs 4 at least")
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return float((np.vdot(k, m) + sums) / (n * (n - 3)))
