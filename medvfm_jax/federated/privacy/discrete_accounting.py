"""What the distributed discrete mechanisms cost: Rényi curves of the noisy integer sum, and ε from them.

All in grid units: B is `Discrete.rounded_bound`, the l2 sensitivity; B₁ = B min(√d, B) bounds the l1 norm of an integer
vector; v is one client's noise variance; n v that of the sum. The neighbouring relation is "zero out one": one
client's message holds noise and no update. Both curves become the Gaussian's as the grid becomes fine.
"""

import math
from typing import Literal

import numpy as np

from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy.accounting import Guarantee
from medvfm_jax.federated.privacy.discrete import Discrete, choose
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.renyi import Curve, epsilon_of, poisson_sampled

_NEIGHBOURS = "zero out one"


def discrete_gaussian_curve(mechanism: Discrete, answered: int | None = None) -> Curve:
    """α -> RDP of the sum of n discrete Gaussians, which is close to but not quite a discrete Gaussian itself.

    answered: how many of the n sent their noise; None for all.
    τ = 10 Σ_{k=1}^{n-1} exp(-2 π² v k / (k + 1)) bounds the difference.
    Source: Kairouz, Liu & Steinke, ICML 2021, theorem 1 and section 4.
    """
    n, v, d = _answered(mechanism, answered), mechanism.local_variance, mechanism.padded
    l2, l1 = _sensitivities(mechanism)
    k = np.arange(1, n)
    tau = 10 * float(np.exp(-2 * math.pi**2 * v * k / (k + 1)).sum())
    ratio = l2 / math.sqrt(n * v)

    def curve(order: float) -> float:
        mixed = ratio**2 + 2 * l1 / math.sqrt(n * v) * tau + tau**2 * d
        return min(
            order / 2 * ratio**2 + tau * d,
            order / 2 * mixed,
            order / 2 * (ratio + math.sqrt(d) * tau) ** 2,
        )

    return curve


def skellam_curve(mechanism: Discrete, answered: int | None = None) -> Curve:
    """Integer α -> RDP of the sum of n Skellams, itself a Skellam of variance μ = n v.

    answered: how many of the n sent their noise; None for all.

    α B² / (2 μ) + min(((2 α - 1) B² + 6 B₁) / (4 μ²), 3 B₁ / (2 μ)).
    Source: Agarwal, Kairouz & Liu, NeurIPS 2021, theorem 3.5.
    """
    mu = _answered(mechanism, answered) * mechanism.local_variance
    l2, l1 = _sensitivities(mechanism)

    def curve(order: float) -> float:
        excess = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
        return order * l2**2 / (2 * mu) + excess

    return curve


def account_discrete(
    mechanism: Discrete, *, rounds: int, delta: float, rate: float = 1.0, answered: int | None = None
) -> Guarantee:
    """ε of `rounds` sums. Poisson sampling at `rate` uses the general bound of Zhu & Wang, which is not tight.

    answered: the fewest clients whose noise is in a sum, None for all n = `expected_clients`.  The noise of a client
    that drops out is missing, so the sum has variance answered × v; with a threshold of secure aggregation, below which
    no sum is opened, that is the worst case of every round.
    """
    privacy = mechanism.privacy
    if privacy.neighbours != _NEIGHBOURS:
        raise BadPrivacy(
            f'the discrete mechanisms are accounted for with neighbours="{_NEIGHBOURS}", not "{privacy.neighbours}": '
            "the number of clients that add noise is fixed"
        )
    if rounds < 1 or not 0 < delta < 1 or not 0 < rate <= 1:
        raise BadPrivacy(f"cannot account for {rounds} rounds at delta {delta}, rate {rate}")
    epsilon = math.inf
    if mechanism.local_variance > 0:
        make = {"gaussian": discrete_gaussian_curve, "skellam": skellam_curve}[mechanism.noise]
        epsilon = epsilon_of(poisson_sampled(rate, make(mechanism, answered)), rounds, delta)
    sampling = "everyone" if rate == 1 else "poisson"
    z = privacy.noise_multiplier
    return Guarantee(epsilon, delta, privacy.unit, _NEIGHBOURS, sampling, rate, z, rounds, "rdp")


def discrete_with_epsilon(
    privacy: Privacy,
    epsilon: float,
    *,
    size: int,
    rounds: int,
    delta: float,
    answered: int | None = None,
    bits: int = 16,
    noise: Literal["gaussian", "skellam"] = "gaussian",
) -> Discrete:
    """The mechanism with the least noise whose `account_discrete` is at most `epsilon`, everyone taking part.

    Its grid is chosen anew for every noise, see `discrete.choose`.  Raises BadPrivacy if no noise up to 2^20 clips
    does: the rounding and the integer noise then cost more than `epsilon` by themselves, and more bits would help.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise BadPrivacy(f"epsilon is {epsilon}; noise can be found for a finite epsilon above zero only")

    def made(z: float) -> Discrete:
        return choose(privacy._replace(noise_multiplier=z), size, bits, noise)

    def enough(z: float) -> bool:
        found = account_discrete(made(z), rounds=rounds, delta=delta, answered=answered)
        return found.epsilon <= epsilon

    high = 0.05
    while not enough(high):
        high *= 2
        if high > 2**20:
            raise BadPrivacy(
                f"no noise gives epsilon {epsilon:g} over {rounds} rounds with sums of {bits} bits over {size} "
                "parameters; use more bits or train fewer parameters"
            )
    low = high / 2
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return made(high)


def _clients(mechanism: Discrete) -> int:
    n = mechanism.privacy.expected_clients
    if n != int(n):
        raise BadPrivacy(f"expected_clients is {n}; the discrete mechanisms need a whole number of clients")
    return int(n)


def _answered(mechanism: Discrete, answered: int | None) -> int:
    n = _clients(mechanism)
    if answered is not None and not 1 <= answered <= n:
        raise BadPrivacy(f"{answered} of {n} clients cannot have answered")
    return n if answered is None else answered


def _sensitivities(mechanism: Discrete) -> tuple[float, float]:
    """-> l2 and l1 sensitivity in grid units."""
    l2 = mechanism.rounded_bound
    return l2, l2 * min(math.sqrt(mechanism.padded), l2)
