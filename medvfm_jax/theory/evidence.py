"""Evidence of labels given features under Bayesian linear regression, its largest over both variances: LogME."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RATIOS = np.linspace(
    -16, 16, 257
)  # powers of 10 of the ratio of precisions, relative to the largest singular value
_REFINEMENTS = 40  # golden sections of two steps of that grid: to 1e-9 of its step
_GOLDEN = (5**0.5 - 1) / 2


class Evidence(NamedTuple):
    """The largest evidence of one target.

    Attributes:
        value: its logarithm, per example.
        prior: precision of the weights that gives it; infinity where the features say nothing of the target.
        noise: precision of the target around its prediction.
    """

    value: float
    prior: float
    noise: float


def log_evidence(features: ArrayLike, target: ArrayLike) -> Evidence:
    """Largest marginal likelihood of y = F w + e, w ~ N(0, 1 / prior), e ~ N(0, 1 / noise).

    With t = prior / noise the noise has a closed form, so one number is searched: on a grid, then by golden sections.
    The fixed point of the paper finds the same where it converges.

    Args:
        features: F (n, d), as they are: neither centred nor scaled.
        target: y (n,).

    Returns:
        It is the same for features turned or multiplied by a number.

    Raises:
        ValueError: features or a target that are not finite, a target of 0, or one that is a linear function of fewer
            features than examples, whose evidence has no largest value.

    References:
        You et al., ICML 2021 (LogME), https://arxiv.org/abs/2102.11005, section 4.2.
    """
    features, y = np.asarray(features, np.float64), np.asarray(target, np.float64)
    if not (np.isfinite(features).all() and np.isfinite(y).all()):
        raise ValueError("features or target are not finite")
    if not y.any():
        raise ValueError("the target is 0 throughout")
    return _largest(*_spectrum(features), y)


def logme(features: ArrayLike, classes: ArrayLike) -> float:
    """Mean over classes of the largest evidence of "is of this class" as 0 and 1, per example: LogME.

    Args:
        features: (n, d).
        classes: class of each example (n,), of two classes at least.

    Returns:
        Larger for features from which the classes follow linearly; comparable between features of the same examples.

    Raises:
        ValueError: one class, or what ``log_evidence`` refuses.

    References:
        You et al., ICML 2021, https://arxiv.org/abs/2102.11005, algorithm 1.
    """
    features, classes = np.asarray(features, np.float64), np.asarray(classes)
    found = np.unique(classes)
    if len(found) < 2:
        raise ValueError("examples of one class; two are needed at least")
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    left, squares = _spectrum(features)
    return float(np.mean([_largest(left, squares, (classes == one).astype(float)).value for one in found]))


def _spectrum(features: NDArray) -> tuple[NDArray, NDArray]:
    """Left singular vectors (n, r) and squared singular values (r,) of rank r."""
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    kept = values > max(features.shape) * np.finfo(np.float64).eps * max(values.max(initial=0), 1e-300)
    return left[:, kept], values[kept] ** 2


def _largest(left: NDArray, squares: NDArray, y: NDArray) -> Evidence:
    n, seen = len(y), (left.T @ y) ** 2
    unseen = max(float(y @ y - seen.sum()), 0.0)  # of the target, outside what features reach
    if not len(squares):  # all features are 0
        return Evidence(_value(n, float(y @ y), 0.0), np.inf, n / float(y @ y))
    if unseen <= 1e-12 * float(y @ y) and len(squares) < n:
        raise ValueError("the target is a linear function of the features; take more examples than features")
    scale = squares[0]

    def of(power: NDArray) -> tuple[NDArray, NDArray]:
        """Of powers of 10 of t / scale: the log evidence, and the residual Q whose inverse is the noise over n."""
        t = scale * 10.0 ** np.atleast_1d(power)[:, None]
        residual = unseen + (seen * t / (t + squares)).sum(1)
        return _value(n, residual, np.log1p(squares / t).sum(1)), residual

    best = int(np.argmax(of(_RATIOS)[0]))
    low, high = _RATIOS[max(best - 1, 0)], _RATIOS[min(best + 1, len(_RATIOS) - 1)]
    for _ in range(_REFINEMENTS):
        a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, b) if of(a)[0] >= of(b)[0] else (a, high)
    power = (low + high) / 2
    value, residual = of(power)
    noise = n / float(residual[0])
    useless = _value(n, float(y @ y), 0.0)  # weights of 0
    if useless >= value[0]:
        return Evidence(float(useless), np.inf, n / float(y @ y))
    return Evidence(float(value[0]), float(scale * 10**power * noise), noise)


def _value(n: int, residual: NDArray | float, determinant: NDArray | float) -> NDArray | float:
    """Log evidence per example at the best noise, n / Q: -(log(2 pi Q / n) + 1) / 2 - log|1 + F'F / t| / 2n."""
    return -0.5 * (np.log(2 * np.pi * residual / n) + 1) - 0.5 * determinant / n
