"""Are predicted probabilities true? Reliability bins, expected calibration error, Brier score."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.metrics.overlap import MaskShapeMismatch
from medvfm_jax.types import IGNORE


class Reliability(NamedTuple):
    """Equal-width bins of probability; NaN where a bin is empty.

    Attributes:
        edges: (bins + 1,).
        probability: (bins,) mean probability.
        frequency: (bins,) observed frequency.
        count: (bins,) pixels.
    """

    edges: NDArray[np.float64]  # (bins + 1,)
    probability: NDArray[np.float64]  # (bins,)
    frequency: NDArray[np.float64]  # (bins,)
    count: NDArray[np.int64]  # (bins,)


def _counted(
    probability: NDArray, target: NDArray, valid: NDArray | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """-> probabilities (1, n) of the foreground or (C, n), targets (n,); counted pixels only."""
    probability, target = np.asarray(probability, float), np.asarray(target)
    if probability.shape == target.shape:
        probability = probability[None]
    elif probability.shape[1:] != target.shape:
        raise MaskShapeMismatch(
            f"the probabilities have shape {probability.shape} and the target has shape {target.shape}; "
            "expected the target's shape (foreground probability), or one leading class axis more"
        )
    keep = target != IGNORE
    if valid is not None:
        keep &= np.asarray(valid, bool)
    return probability[:, keep], target[keep].astype(np.int64)


def reliability(
    probability: NDArray, target: NDArray, valid: NDArray | None = None, bins: int = 15
) -> Reliability:
    """Mean probability against observed frequency, in bins.

    Args:
        probability: of the foreground (...), against how often the pixel is foreground; or of classes (C, ...): that of
            the most likely class, against how often it is right.
        target: mask or class index (...); IGNORE does not count.
        valid: (...) bool, pixels that count; None for all.
        bins: of equal width.

    Returns:
        The bins.

    References:
        Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599
    """
    p, y = _counted(probability, target, valid)
    confidence, right = (p[0], y > 0) if len(p) == 1 else (p.max(0), p.argmax(0) == y)
    edges = np.linspace(0.0, 1.0, bins + 1)
    # bins are (a, b], the first one includes 0
    # bins are (a, b], the first one includes 0
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, confidence, bins) / count
        frequency = np.bincount(index, right, bins) / count
    return Reliability(edges, mean, frequency, count)


def expected_calibration_error(
    probability: NDArray, target: NDArray, valid: NDArray | None = None, bins: int = 15
) -> float:
    """Σ_b n_b / n |frequency_b - probability_b|, over the bins of `reliability`.

    Args:
        probability: of the foreground (...), or of classes (C, ...).
        target: mask or class index (...); IGNORE does not count.
        valid: (...) bool, pixels that count; None for all.
        bins: of equal width.

    Returns:
        The error; NaN without pixels.

    References:
        Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599
    """
    table = reliability(probability, target, valid, bins)
    used = table.count > 0
    if not used.any():
        return float("nan")
    return float(np.average(np.abs(table.frequency - table.probability)[used], weights=table.count[used]))


def brier(probability: NDArray, target: NDArray, valid: NDArray | None = None) -> float:
    """Brier score: mean of (p - y)², or of Σ_c (p_c - y_c)² for class probabilities.

    Args:
        probability: of the foreground (...), or of classes (C, ...).
        target: mask or class index (...); IGNORE does not count.
        valid: (...) bool, pixels that count; None for all.

    Returns:
        The score; NaN without pixels. For two classes the form for classes is twice that of the foreground.

    References:
        Brier 1950 (the class form), https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    p, y = _counted(probability, target, valid)
    if not y.size:
        return float("nan")
    if len(p) == 1:
        return float(np.mean((p[0] - (y > 0)) ** 2))
    return float(np.mean(np.sum((p - (np.arange(len(p))[:, None] == y)) ** 2, axis=0)))
