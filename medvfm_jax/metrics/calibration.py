"""Are predicted probabilities true? Reliability bins, expected calibration error, Brier score."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.metrics.overlap import MaskShapeMismatch
from medvfm_jax.types import IGNORE


class Reliability(NamedTuple):
    """Equal-width bins: mean probability, observed frequency, pixels; NaN where a bin is empty."""

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
    """Probabilities (...) or (C, ...), target (...) -> Reliability.

    One probability per pixel: that of the foreground, against how often the pixel is foreground. (C, ...):
    that of the most likely class, against how often it is right. IGNORE and pixels outside `valid` do not
    count.
    Source: Guo et al., ICML 2017.
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
    """Σ_b n_b / n |frequency_b - probability_b|; shapes as in `reliability`; NaN without pixels."""
    table = reliability(probability, target, valid, bins)
    used = table.count > 0
    if not used.any():
        return float("nan")
    return float(np.average(np.abs(table.frequency - table.probability)[used], weights=table.count[used]))


def brier(probability: NDArray, target: NDArray, valid: NDArray | None = None) -> float:
    """Mean of (p - y)², or of Σ_c (p_c - y_c)² for class probabilities (C, ...); NaN without pixels.

    Source: Brier 1950 (the class form is his; the foreground form is half of it for two classes).
    """
    p, y = _counted(probability, target, valid)
    if not y.size:
        return float("nan")
    if len(p) == 1:
        return float(np.mean((p[0] - (y > 0)) ** 2))
    return float(np.mean(np.sum((p - (np.arange(len(p))[:, None] == y)) ** 2, axis=0)))
