"""What the distributed discrete mechanisms cost: Rényi curves of the noisy integer sum, and ε from them.

All in grid units: B is `Discrete.rounded_bound`, the l2 sensitivity; B₁ = B min(√d, B) bounds the l1 norm of an integer
vector; v is one client's noise variance; n v that of the sum. The neighbouring relation is "zero out one": one
client's message holds noise and no update. Both curves become the Gaussian's as the grid becomes fine.
"""

import math

import numpy as np

from medvfm_jax.federated.privacy.accounting import Guarantee
from medvfm_jax.federated.privacy.discrete import Discrete
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.renyi import Curve, epsilon_of, poisson_sampled

_NEIGHBOURS = "zero out one"


def discrete_gaussian_curve(mechanism: Discrete) -> Curve:
    """α -> RDP of the sum of n discrete Gaussians, which is close to but not quite a discrete Gaussian itself.

    τ = 10 Σ_{k=1}^{n-1} exp(-2 π² v k / (k + 1)) bounds the difference.
    Source: Kairouz, Liu & Steinke, ICML 2021, theorem 1 and section 4.
    """
    n, v, d = _clients(mechanism), mechanism.local_variance, mechanism.padded
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


def skellam_curve(mechanism: Discrete) -> Curve:
    """Integer α -> RDP of the sum of n Skellams, itself a Skellam of variance μ = n v.

    α B² / (2 μ) + min(((2 α - 1) B² + 6 B₁) / (4 μ²), 3 B₁ / (2 μ)).
    Source: Agarwal, Kairouz & Liu, NeurIPS 2021, theorem 3.5.
    """
    mu = _clients(mechanism) * mechanism.local_variance
    l2, l1 = _sensitivities(mechanism)

    def curve(order: float) -> float:
        excess = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
        return order * l2**2 / (2 * mu) + excess

    return curve


def account_discrete(mechanism: Discrete, *, rounds: int, delta: float, rate: float = 1.0) -> Guarantee:
    """ε of `rounds` sums. Poisson sampling at `rate` uses the general bound of Zhu & Wang, which is not tight.

    Assumes that all n = `expected_clients` of a round add their noise.
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
        curve = {"gaussian": discrete_gaussian_curve, "skellam": skellam_curve}[mechanism.noise](mechanism)
        epsilon = epsilon_of(poisson_sampled(rate, curve), rounds, delta)
    sampling = "everyone" if rate == 1 else "poisson"
    z = privacy.noise_multiplier
    return Guarantee(epsilon, delta, privacy.unit, _NEIGHBOURS, sampling, rate, z, rounds, "rdp")


def _clients(mechanism: Discrete) -> int:
    n = mechanism.privacy.expected_clients
    if n != int(n):
        raise BadPrivacy(f"expected_clients is {n}; the discrete mechanisms need a whole number of clients")
    return int(n)


def _sensitivities(mechanism: Discrete) -> tuple[float, float]:
    """-> l2 and l1 sensitivity in grid units."""
    l2 = mechanism.rounded_bound
    return l2, l2 * min(math.sqrt(mechanism.padded), l2)
