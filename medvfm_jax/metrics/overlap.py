"""Overlap of two binary masks of any rank: counts, Dice, IoU, volumes. Empty masks give NaN here.

What an empty mask is worth is a convention, so it lives in `metrics.profiles`, not in these formulas.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError


class MaskShapeMismatch(MedvfmError):
    """Reference and prediction do not have the same shape."""


class Overlap(NamedTuple):
    """Pixel counts: in both masks, only in the prediction, only in the reference."""

    true_positive: int
    false_positive: int
    false_negative: int

    @property
    def reference(self) -> int:
        """Pixels of the reference mask."""
        return self.true_positive + self.false_negative

    @property
    def prediction(self) -> int:
        """Pixels of the predicted mask."""
        return self.true_positive + self.false_positive


def check_shapes(reference: NDArray, prediction: NDArray) -> None:
    """Raise `MaskShapeMismatch` unless both arrays have one shape."""
    if reference.shape != prediction.shape:
        raise MaskShapeMismatch(
            f"the reference has shape {reference.shape} and the prediction has shape {prediction.shape}; "
            "bring the prediction back to the reference's grid before scoring"
        )


def count(reference: NDArray, prediction: NDArray, valid: NDArray | None = None) -> Overlap:
    """Two boolean masks of one shape -> Overlap over the pixels where `valid` (or everywhere)."""
    reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
    check_shapes(reference, prediction)
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    both = int(np.count_nonzero(reference & prediction))
    return Overlap(both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both)


def dice(counts: Overlap) -> float:
    """2 TP / (2 TP + FP + FN); NaN when both masks are empty. Source: Dice 1945."""
    size = 2 * counts.true_positive + counts.false_positive + counts.false_negative
    return 2 * counts.true_positive / size if size else float("nan")


def iou(counts: Overlap) -> float:
    """TP / (TP + FP + FN) = Dice / (2 - Dice); NaN when both masks are empty. Source: Jaccard 1912."""
    union = counts.true_positive + counts.false_positive + counts.false_negative
    return counts.true_positive / union if union else float("nan")


def volume(pixels: int, spacing: Sequence[float]) -> float:
    """Number of pixels -> area in mm² or volume in mm³ (in pixels for a spacing of ones)."""
    return float(pixels * np.prod(np.asarray(spacing, float)))
