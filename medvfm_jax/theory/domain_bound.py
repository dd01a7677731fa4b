"""What the error on another domain is made of: the terms of Ben-David's bound, by linear heads on features."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvfm_jax.theory.probes import held_out_accuracy, ridge_predictions
from medvfm_jax.types import MedvfmError


class NoTerms(MedvfmError, ValueError):
    """Domains of which the terms of a bound cannot be estimated."""


class LabelledDomain(NamedTuple):
    """Labelled points of one domain.

    Attributes:
        features: (n, d).
        classes: (n,).
        patients: (n,), number of the patient of each point.
    """

    features: NDArray
    classes: NDArray
    patients: NDArray


class DomainBound(NamedTuple):
    """The terms, each of patients whose points were not learnt from.

    Attributes:
        source_error: of a head that is fitted on the source, there.
        half_distance: half the proxy A-distance of the domains, 0 to 1.
        joint_error: errors on source and target of one head that is fitted on both, added: the least joint error.
        bound: the sum of the three.
        target_error: what the source's head really has on the target.
        stderr: standard error of that over the target's patients.
    """

    source_error: float
    half_distance: float
    joint_error: float
    bound: float
    target_error: float
    stderr: float


def domain_bound(source: LabelledDomain, target: LabelledDomain, folds: int = 5) -> DomainBound:
    """Error on the target <= error on the source + half the distance of the domains + least joint error.

    The heads are ridge classifiers, and so is the one that tells the domains apart, whose error e gives the distance
    2 (1 - 2 e), at least 0.  Errors are means over patients; no head is asked about a patient that it learnt from.
    These are estimates, so that the sum may be passed.

    Args:
        source: labelled points.
        target: labelled points; the labels are only used to score and for the joint error.
        folds: parts of the patients of each domain, each held out once; as many as the smaller has, if it has fewer.

    Returns:
        The terms.

    Raises:
        NoTerms: fewer than two patients in a domain, one class in the source, or features that are constant or not
            finite.

    References:
        Ben-David et al. 2010, theorem 2, https://doi.org/10.1007/s10994-009-5152-4.  Differs: the distance is that
        of linear heads and not of their symmetric differences, the joint error that of a head which minimises
        squares, and nothing is added for the number of points.
    """
    patients = [len(np.unique(domain.patients)) for domain in (source, target)]
    if min(patients) < 2:
        raise NoTerms(
            "A domain has a single patient, so that none can be held out; give domains of two or more."
        )
    x = np.concatenate([np.asarray(domain.features, np.float64) for domain in (source, target)])
    if not np.isfinite(x).all() or not (np.ptp(x, axis=0) > 0).any():
        raise NoTerms(
            "The features are constant or not finite, and no head can be fitted; take another model."
        )
    if len(np.unique(source.classes)) < 2:
        raise NoTerms(
            "The source shows one class, so that there is nothing to tell apart; take more points or pictures."
        )
    folds = min(folds, *patients)
    first, second = (np.unique(domain.patients, return_inverse=True)[1] for domain in (source, target))
    groups = np.concatenate([first, second + folds * -(-patients[0] // folds)])  # both in every fold
    classes = np.concatenate([source.classes, target.classes])
    of_target = np.arange(len(x)) >= len(first)
    own = held_out_accuracy(ridge_predictions, x[~of_target], source.classes, first, folds)
    told = 1 - held_out_accuracy(ridge_predictions, x, of_target, groups, folds)
    joint = 1 - held_out_accuracy(ridge_predictions, x, classes, groups, folds)
    right = ridge_predictions(x[~of_target], source.classes, x[of_target]) == target.classes
    each = np.array([1 - right[second == number].mean() for number in range(patients[1])])
    half = max(1 - float(_of_domains(told, patients[0])), 0.0)
    terms = float(1 - own.mean()), half, float(_of_domains(joint, patients[0]))
    return DomainBound(*terms, sum(terms), float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5))


def _of_domains(errors: ArrayLike, first: int) -> float:
    """Errors of patients, the first so many of one domain -> the sum of the means of both domains."""
    errors = np.asarray(errors)
    return float(errors[:first].mean() + errors[first:].mean())
