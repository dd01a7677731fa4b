"""Bounds of the expected error of a trained adapter, from its error in training and how much it has learnt."""

import math

from medvfm_jax.types import MedvfmError


class NoBound(MedvfmError, ValueError):
    """Numbers that no bound can be made from."""


def kl_bernoulli(q: float, p: float) -> float:
    """Divergence of two coins, kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)).

    Args:
        q: in [0, 1].
        p: in [0, 1].

    Returns:
        At least 0; infinite where p excludes what q allows.
    """
    found = 0.0
    for a, b in ((q, p), (1 - q, 1 - p)):
        if a > 0:
            found += a * math.log(a / b) if b > 0 else math.inf
    return found


def kl_inverse(q: float, budget: float) -> float:
    """Largest p with kl(q || p) <= budget.

    Args:
        q: observed mean of losses in [0, 1].
        budget: at least 0.

    Returns:
        In [q, 1]; 1 - exp(-budget) for q = 0.

    Raises:
        NoBound: a mean outside of [0, 1], or a negative budget.
    """
    if not 0 <= q <= 1 or not budget >= 0:
        raise NoBound(
            f"A bound needs a mean error from 0 to 1 and no negative budget; these are {q} and {budget}."
        )
    low, high = q, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if kl_bernoulli(q, middle) <= budget else (low, middle)
    return high


def gaussian_divergence(numbers: int, squared_distance: float, posterior: float, prior: float) -> float:
    """Divergence of two Gaussians with the covariances s^2 I and s_0^2 I.

    (d (r - 1 - ln r) + |theta - theta_0|^2 / s_0^2) / 2, r = s^2 / s_0^2.

    Args:
        numbers: d, how many numbers are trained.
        squared_distance: of the trained ones from their start.
        posterior: s, standard deviation around what was trained.
        prior: s_0, around the start.

    Returns:
        At least 0.
    """
    ratio = (posterior / prior) ** 2
    return 0.5 * (numbers * (ratio - 1 - math.log(ratio)) + squared_distance / prior**2)


def pac_bayes_bound(error: float, information: float, patients: int, doubt: float) -> float:
    """What the expected error is at most, with probability 1 - doubt over the choice of patients.

    kl(observed || expected) <= (information + ln(2 sqrt(n) / doubt)) / n, for all posteriors at once.

    Args:
        error: mean over patients, and over the posterior, of a loss in [0, 1].
        information: divergence of posterior and prior in nats; or bits times ln 2 for numbers that were rounded.
        patients: n, independent of each other.
        doubt: in (0, 1).

    Returns:
        In [error, 1].

    Raises:
        NoBound: see ``kl_inverse``.

    References:
        Maurer 2004, https://arxiv.org/abs/cs/0411099, theorem 5; Lotfi et al. 2022,
        https://arxiv.org/abs/2211.13609, for bits in the place of the divergence.
    """
    return kl_inverse(error, (information + math.log(2 * math.sqrt(patients) / doubt)) / patients)


def sampled_error(error: float, draws: int, doubt: float) -> float:
    """What the mean error of a posterior is at most, of which a few draws were looked at.

    Args:
        error: mean over the draws of a loss in [0, 1].
        draws: how many, independent.
        doubt: in (0, 1).

    Returns:
        In [error, 1].

    References:
        Dziugaite and Roy 2017, https://arxiv.org/abs/1703.11008, section 3.3.
    """
    return kl_inverse(error, math.log(2 / doubt) / draws)
