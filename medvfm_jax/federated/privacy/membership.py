"""Membership inference by loss: can somebody who sees the model tell the patients it was trained on?

A weak attack on purpose: it needs only one loss per patient. Failing it is a fact about the model, passing it is not a
guarantee. What a guarantee allows at most: `largest_advantage`, `largest_auc`.
Source: Yeom et al., Privacy Risk in Machine Learning, CSF 2018; true-positive rates at low false-positive rates after
Carlini et al., Membership Inference Attacks From First Principles, S&P 2022.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from medvfm_jax.federated.privacy.errors import BadPrivacy


class Membership(NamedTuple):
    """How well losses tell members from others; 0.5 and 0 are chance.

    Attributes:
        auc: area under the ROC curve of the attack by threshold, 0.5 for chance.
        auc_error: standard error of the AUC (DeLong), NaN with fewer than two of either.
        advantage: largest difference of true and false positive rate, 0 for chance.
        threshold: losses up to it are called members at that difference.
        members: patients trained on.
        others: patients not trained on.
    """

    auc: float
    auc_error: float
    advantage: float
    threshold: float
    members: int
    others: int


def loss_attack(member_losses: ArrayLike, other_losses: ArrayLike) -> Membership:
    """Membership inference by the loss.

    One loss per patient, see `per_patient`: slices of a patient are not independent. The others must come from the
    same hospitals, or the attack measures the difference between hospitals. `advantage` is chosen in sample, so it is
    optimistic for few patients; the AUC is not.

    Args:
        member_losses: (n,), one per patient trained on.
        other_losses: (m,), one per patient not trained on.

    Returns:
        How well a threshold on the loss separates them.
    """
    members, others = _losses(member_losses), _losses(other_losses)
    n, m = members.size, others.size
    ranks = stats.rankdata(np.concatenate([members, others]))
    # Fraction of the other group each loss is on the right side of, ties half: DeLong's structural components.
    of_members = 1 - (ranks[:n] - stats.rankdata(members)) / m
    of_others = (ranks[n:] - stats.rankdata(others)) / n
    error = math.sqrt(of_members.var(ddof=1) / n + of_others.var(ddof=1) / m) if min(n, m) > 1 else math.nan
    thresholds = np.unique(np.concatenate([members, others]))
    gaps = _rate_at_most(members, thresholds) - _rate_at_most(others, thresholds)
    best = int(np.argmax(gaps))
    return Membership(
        float(of_members.mean()), error, max(0.0, float(gaps[best])), float(thresholds[best]), n, m
    )


def true_positive_rate(
    member_losses: ArrayLike, other_losses: ArrayLike, false_positive_rate: float
) -> float:
    """Fraction of members found by the largest threshold that accuses at most `false_positive_rate` of the others."""
    members, others = _losses(member_losses), _losses(other_losses)
    thresholds = np.unique(np.concatenate([members, others]))
    allowed = _rate_at_most(others, thresholds) <= false_positive_rate
    return float(_rate_at_most(members, thresholds)[allowed].max(initial=0.0))


def per_patient(losses: ArrayLike, patients: Sequence) -> np.ndarray:
    """Losses of slices averaged over each patient.

    Args:
        losses: (n,) of slices.
        patients: to which patient each belongs, (n,).

    Returns:
        Mean loss of each patient (P,), in order of appearance.

    Raises:
        BadPrivacy: the lengths differ, or a loss is NaN.
    """
    losses = _losses(losses)
    if len(patients) != losses.size:
        raise BadPrivacy(
            f"{losses.size} losses and {len(patients)} patients; expected one patient for each loss"
        )
    sums: dict = {}
    for loss, patient in zip(losses, patients, strict=True):
        sums.setdefault(patient, []).append(loss)
    return np.array([np.mean(values) for values in sums.values()])


def largest_advantage(epsilon: float, delta: float) -> float:
    """What (ε, δ) allows: true-positive minus false-positive rate at most (e^ε - 1 + 2 δ) / (e^ε + 1)."""
    return 1 - 2 * _corner(epsilon, delta)


def largest_auc(epsilon: float, delta: float) -> float:
    """Area under the best curve (ε, δ) allows: corners (0, δ), (f, 1 - f), (1 - δ, 1), f = (1 - δ) / (1 + e^ε).

    e^ε / (1 + e^ε) without δ. Source: Kairouz, Oh & Viswanath, The Composition Theorem for Differential Privacy, 2015.
    """
    f = _corner(epsilon, delta)
    return f * (1 + delta - f) / 2 + (1 - delta - f) * (2 - f) / 2 + delta


def _corner(epsilon: float, delta: float) -> float:
    """False-positive rate of the region's corner, the same as its false-negative rate."""
    if epsilon < 0 or not 0 <= delta <= 1:
        raise BadPrivacy(
            f"({epsilon}, {delta}) is no privacy guarantee; expected epsilon >= 0, delta in [0, 1]"
        )
    return (1 - delta) * math.exp(-epsilon) / (1 + math.exp(-epsilon))


def _rate_at_most(losses: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(losses), thresholds, side="right") / losses.size


def _losses(losses: ArrayLike) -> np.ndarray:
    losses = np.asarray(losses, float).ravel()
    if not losses.size or np.isnan(losses).any():
        raise BadPrivacy("membership inference needs at least one loss of each group, and none that is NaN")
    return losses
