"""What a federation's noise means: from a Privacy record to (ε, δ), and back from ε to the noise.

A number ε says nothing without the unit it protects, the neighbouring relation and how participants were drawn,
so `account` states all of them. Three accountants:

* "pld", privacy loss distributions: tight up to a discretisation of 1e-4, pessimistic. The default.
* "rdp", Rényi: looser, faster, and the one most papers quote.
* "exact", for full participation only: the Gaussian's closed form. Needs no extra package.

The first two come from dp-accounting (`pip install 'medvfm-jax[privacy]'`).
"""

import math
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from scipy import optimize

from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.gaussian import gaussian_epsilon
from medvfm_jax.types import MedvfmError

Accountant = Literal["pld", "rdp", "exact"]
Sampling = Literal["poisson", "fixed size", "everyone"]

# Neighbouring relation -> sensitivity of the sum in clips.
_SENSITIVITY = {"add or remove one": 1.0, "zero out one": 1.0, "replace one": 2.0}
_ASSUMES = {
    "poisson": "each drawn independently with rate {rate:g} every round, unseen by the adversary",
    "fixed size": "a uniformly random {rate:g} of all drawn without replacement every round, unseen by the adversary",
    "everyone": "everyone in every round, no amplification by sampling",
}


class MissingPrivacyExtra(MedvfmError, ImportError):
    """dp-accounting is not installed."""


class Guarantee(NamedTuple):
    """(ε, δ) and everything it rests on.

    Attributes:
        epsilon: ε.
        delta: δ.
        unit: what is protected: "client" or "patient".
        neighbours: how two neighbouring data sets differ in one unit, see ``account``.
        sampling: who takes part in a round: "poisson", "fixed size" or "everyone".
        rate: share of the population in a round.
        noise_multiplier: standard deviation of the noise on the sum, in clips.
        rounds: noisy sums that were released.
        accountant: name of the method of composition.
    """

    epsilon: float
    delta: float
    unit: str
    neighbours: str
    sampling: str
    rate: float
    noise_multiplier: float
    rounds: int
    accountant: str

    def __str__(self) -> str:
        """One sentence for a report."""
        return (
            f"({self.epsilon:.4g}, {self.delta:g})-differential privacy of one {self.unit} ({self.neighbours}), "
            f"after {self.rounds} rounds with noise multiplier {self.noise_multiplier:.4g}, assuming "
            f"{_ASSUMES[self.sampling].format(rate=self.rate)}; accountant: {self.accountant}"
        )


def account(
    privacy: Privacy,
    *,
    rounds: int,
    delta: float,
    rate: float = 1.0,
    sampling: Sampling = "poisson",
    accountant: Accountant = "pld",
) -> Guarantee:
    """Privacy of `rounds` noisy sums.

    Neighbours: "add or remove one"; "zero out one" (the record counts as zero; the same ε); "replace one"
    (sensitivity 2 C instead of C, so the same noise protects less). Adaptive clipping needs no extra term, see
    `client_level.update_multiplier`.

    Args:
        privacy: the mechanism.
        rounds: noisy sums; for patients inside a hospital all its DP-SGD steps.
        delta: δ of the guarantee.
        rate: share of the population that takes part in a round (patients in a step). At rate 1 the sampling is
            "everyone".
        sampling: how participants are drawn.
        accountant: "pld" and "rdp" of dp-accounting, or "exact" for everyone in every round.

    Returns:
        (ε, δ) with the unit and neighbouring relation that ``privacy`` names.

    Raises:
        BadPrivacy: a combination that no accountant covers.
        MissingPrivacyExtra: dp-accounting is not installed.
    """
    sampling = "everyone" if rate == 1 else sampling
    _check(privacy, rounds, delta, rate, sampling, accountant)
    z = privacy.noise_multiplier
    if z == 0:
        epsilon = math.inf
    elif accountant == "exact":
        epsilon = gaussian_epsilon(delta, z / _SENSITIVITY[privacy.neighbours], rounds)
    else:
        epsilon = _dp_accounting_epsilon(z, privacy.neighbours, rounds, delta, rate, sampling, accountant)
    return Guarantee(
        epsilon, delta, privacy.unit, privacy.neighbours, sampling, rate, z, rounds, accountant
    )  # fmt: skip


def with_epsilon(
    privacy: Privacy,
    epsilon: float,
    *,
    rounds: int,
    delta: float,
    rate: float = 1.0,
    sampling: Sampling = "poisson",
    accountant: Accountant = "pld",
    tolerance: float = 1e-3,
) -> Privacy:
    """The record with the least noise multiplier whose `account` is at most `epsilon`; the rest stays.

    The multiplier is within the relative `tolerance` of the least one and never below it.

    Args:
        privacy: the mechanism; its noise multiplier is replaced.
        epsilon: largest ε.
        rounds: noisy sums; for patients inside a hospital all its DP-SGD steps.
        delta: δ of the guarantee.
        rate: share of the population that takes part in a round (patients in a step). At rate 1 the sampling is
            "everyone".
        sampling: how participants are drawn.
        accountant: "pld" and "rdp" of dp-accounting, or "exact" for everyone in every round.
        tolerance: relative, of the multiplier.

    Returns:
        The same record with the noise multiplier found.

    Raises:
        BadPrivacy: no noise gives this ε, or a combination that no accountant covers.
        MissingPrivacyExtra: dp-accounting is not installed.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise BadPrivacy(f"epsilon is {epsilon}; noise can be found for a finite epsilon above zero only")

    def excess(log_z: float) -> float:
        record = privacy._replace(noise_multiplier=math.exp(log_z))
        settings = {
            "rounds": rounds,
            "delta": delta,
            "rate": rate,
            "sampling": sampling,
            "accountant": accountant,
        }
        # In the logarithm ε(z) is nearly straight, so few steps suffice; a floor keeps ε = 0 finite.
        return math.log(max(account(record, **settings).epsilon, 1e-6 * epsilon) / epsilon)

    low = high = 0.0
    while excess(high) > 0:
        low, high = high, high + 1
        if high > 20:
            raise BadPrivacy(f"no noise multiplier up to e^20 gives epsilon {epsilon:g} at delta {delta:g}")
    if low == high:
        low = high - 1
        while excess(low) <= 0:
            low, high = low - 1, low
            if low < -3:  # a twentieth of the clip protects nobody, and the loss distribution becomes huge
                raise BadPrivacy(
                    f"epsilon {epsilon:g} is so large that a noise multiplier below 0.05 would do"
                )
    root = optimize.brentq(excess, low, high, xtol=tolerance / 4)
    while excess(root) > 0:
        root += tolerance / 4
    return privacy._replace(noise_multiplier=math.exp(root))


def _dp_accounting_epsilon(
    z: float, neighbours: str, rounds: int, delta: float, rate: float, sampling: str, accountant: str
) -> float:
    dp = _dp_accounting()
    relation = {
        "add or remove one": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "zero out one": dp.NeighboringRelation.REPLACE_SPECIAL,
        "replace one": dp.NeighboringRelation.REPLACE_ONE,
    }[neighbours]
    if accountant == "pld":
        # Its PLD of a Gaussian doubles the sensitivity itself for "replace one"; its RDP does not.
        event, ledger = dp.GaussianDpEvent(z), dp.pld.PLDAccountant(relation)
    else:
        event = dp.GaussianDpEvent(z / _SENSITIVITY[neighbours])
        ledger = dp.rdp.RdpAccountant(neighboring_relation=relation)
    if sampling == "poisson":
        event = dp.PoissonSampledDpEvent(rate, event)
    elif sampling == "fixed size":
        share = Fraction(rate).limit_denominator(10**9)
        event = dp.SampledWithoutReplacementDpEvent(share.denominator, share.numerator, event)
    return float(ledger.compose(event, rounds).get_epsilon(delta))


def _dp_accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise MissingPrivacyExtra(
            "privacy accounting needs the package dp-accounting; install it with pip install 'medvfm-jax[privacy]', "
            'or use accountant="exact" when everyone takes part in every round'
        ) from error
    return dp_accounting


def _check(privacy: Privacy, rounds: int, delta: float, rate: float, sampling: str, accountant: str) -> None:
    if privacy.neighbours not in _SENSITIVITY:
        raise BadPrivacy(f"neighbours is {privacy.neighbours!r}; expected one of {', '.join(_SENSITIVITY)}")
    if sampling not in _ASSUMES or accountant not in ("pld", "rdp", "exact"):
        raise BadPrivacy(
            f"sampling is {sampling!r} and accountant {accountant!r}; expected one of {', '.join(_ASSUMES)} and one of "
            "pld, rdp, exact"
        )
    if rounds < 1 or not 0 < delta < 1 or not 0 < rate <= 1 or not 0 <= privacy.noise_multiplier < math.inf:
        raise BadPrivacy(
            f"cannot account for {rounds} rounds at delta {delta}, rate {rate}, noise multiplier "
            f"{privacy.noise_multiplier}; expected at least one round, delta in (0, 1), rate in (0, 1], multiplier >= 0"
        )
    if sampling == "everyone" and rate != 1:
        raise BadPrivacy(
            f"sampling is 'everyone' at rate {rate:g}; name how the participants were drawn, or rate 1"
        )
    if accountant == "exact" and sampling != "everyone":
        raise BadPrivacy(
            f'the exact accountant covers rate 1 only, not {sampling} sampling; use "pld" or "rdp"'
        )
    replace = privacy.neighbours == "replace one"
    if sampling == "poisson" and replace and accountant == "rdp":
        raise BadPrivacy('Poisson sampling with "replace one" has no Rényi accountant; use accountant="pld"')
    if sampling == "fixed size" and (not replace or accountant != "rdp"):
        raise BadPrivacy(
            'sampling of a fixed size is accounted for with neighbours="replace one" and accountant="rdp" only, '
            f"not {privacy.neighbours!r} and {accountant!r}"
        )
