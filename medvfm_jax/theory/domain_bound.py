"""What the error on another domain is made of: the terms of Ben-David's bound, by linear heads on features."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    These are estimates, so that the sum may be passed. Where all points of a source are alike, its head gives the class
    that is most frequent there.

    Args:
        source: labelled points.
        target: labelled points; the labels are only used to score and for the joint error.
        folds: parts of the patients of each domain, each held out once; as many as the smaller has, if it has fewer.

    Returns:
        The terms.

    Raises:
        NoTerms: fewer than two patients in a domain, one class in a domain, or features that are constant or not
            finite.

    References:
        Ben-David et al. 2010, theorem 2, https://doi.org/10.1007/s10994-009-5152-4.  Differs: the distance is that
        of linear heads and not of their symmetric differences, the joint error that of a head which minimises
        squares, and nothing is added for the number of points.
    """
    return domain_bounds({"source": source, "target": target}, folds)["source", "target"]


def domain_bounds(
    domains: Mapping[str, LabelledDomain], folds: int = 5
) -> dict[tuple[str, str], DomainBound]:
    """``domain_bound`` of every ordered pair; what both directions of a pair share is estimated once.

    Args:
        domains: name -> labelled points.
        folds: as in ``domain_bound``; where a domain has fewer patients, as many as that has.

    Returns:
        {(source, target): the terms}.

    Raises:
        NoTerms: as ``domain_bound``.
    """
    for domain in domains.values():
        _check(domain)
    x = np.concatenate([np.asarray(domain.features, np.float64) for domain in domains.values()])
    if not np.isfinite(x).all() or not (np.ptp(x, axis=0) > 0).any():
        raise NoTerms(
            "The features are constant or not finite, and no head can be fitted; take another model."
        )
    folds = min(folds, *(len(np.unique(domain.patients)) for domain in domains.values()))
    own = {name: _errors(ridge_predictions, *domain, folds).mean() for name, domain in domains.items()}
    found = {}
    for a, b in itertools.combinations(domains, 2):
        half, joint = _shared(domains[a], domains[b], folds)
        for source, target in ((a, b), (b, a)):
            each = _errors_on(domains[source], domains[target])
            terms = float(own[source]), half, joint
            stderr = float(each.std(ddof=1) / len(each) ** 0.5)
            found[source, target] = DomainBound(*terms, sum(terms), float(each.mean()), stderr)
    return found


def _check(domain: LabelledDomain) -> None:
    if len(np.unique(domain.patients)) < 2:
        raise NoTerms(
            "A domain has a single patient, so that none can be held out; give domains of two or more."
        )
    if len(np.unique(domain.classes)) < 2:
        raise NoTerms(
            "A domain shows one class, so that there is nothing to tell apart; take more points or pictures."
        )


def _errors(
    predict: Callable[[NDArray, NDArray, NDArray], NDArray],
    x: NDArray,
    classes: NDArray,
    patients: NDArray,
    folds: int,
) -> NDArray:
    """Share of wrong answers for each patient, numbered in order."""
    numbers = np.unique(patients, return_inverse=True)[1]
    return 1 - held_out_accuracy(predict, np.asarray(x, np.float64), classes, numbers, folds)


def _errors_on(source: LabelledDomain, target: LabelledDomain) -> NDArray:
    """Errors of the head of all of the source, for each patient of the target."""
    wrong = ridge_predictions(source.features, source.classes, target.features) != target.classes
    return np.array([wrong[target.patients == patient].mean() for patient in np.unique(target.patients)])


def _shared(a: LabelledDomain, b: LabelledDomain, folds: int) -> tuple[float, float]:
    """Half the distance of two domains, and the errors of one head for both, added."""
    first, second = (np.unique(domain.patients, return_inverse=True)[1] for domain in (a, b))
    count = int(first.max()) + 1
    groups = np.concatenate([first, second + folds * -(-count // folds)])  # both in every fold
    x = np.concatenate([np.asarray(domain.features, np.float64) for domain in (a, b)])
    of_second = np.arange(len(x)) >= len(first)
    told = 1 - held_out_accuracy(ridge_predictions, x, of_second, groups, folds)
    joint = 1 - held_out_accuracy(ridge_predictions, x, np.concatenate([a.classes, b.classes]), groups, folds)
    return max(1 - _of_both(told, count), 0.0), _of_both(joint, count)


def _of_both(errors: NDArray, first: int) -> float:
    """Errors of patients, the first so many of one domain -> the sum of the means of both domains."""
    return float(errors[:first].mean() + errors[first:].mean())
