"""Shamir's t-of-n secret sharing over a prime field: t shares give the secret, t - 1 say nothing about it.

On the host in Python integers: secrets are seeds and keys of a few dozen bits, not model updates.
Source: Shamir, How to Share a Secret, CACM 1979.
"""

import secrets as system_random
from collections.abc import Callable, Mapping, Sequence

from medvfm_jax.types import MedvfmError

PRIME = 2**61 - 1  # a Mersenne prime


class BelowThreshold(MedvfmError):
    """Too few shares to reconstruct a secret."""


def share(
    secret: int,
    clients: int,
    threshold: int,
    prime: int = PRIME,
    draw: Callable[[int], int] = system_random.randbelow,
) -> dict[int, int]:
    """Secret in [0, prime) -> {client 0..n-1: share}, any `threshold` of which reconstruct it.

    Share of client i is f(i + 1) for a random polynomial f of degree threshold - 1 with f(0) = secret.
    `draw(k)` returns an integer uniform in [0, k); the default asks the operating system.
    """
    if not 0 <= secret < prime:
        raise MedvfmError(f"the secret {secret} is outside the field [0, {prime})")
    if not 1 <= threshold <= clients < prime:
        raise MedvfmError(
            f"threshold {threshold} of {clients} clients is impossible; expected 1 <= threshold <= clients < {prime}"
        )
    coefficients = [secret, *(draw(prime) for _ in range(threshold - 1))]
    return {i: _evaluate(coefficients, i + 1, prime) for i in range(clients)}


def reconstruct(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> int:
    """{client: share} with at least `threshold` entries -> the secret.

    Raises BelowThreshold with fewer. Shares beyond the threshold are used as a check: if they do not lie on one
    polynomial, somebody sent a wrong share, and that is an error too.
    """
    if len(shares) < threshold:
        raise BelowThreshold(
            f"{len(shares)} shares arrived, {threshold} are needed; the round cannot be unmasked"
        )
    points = [(i + 1, value) for i, value in sorted(shares.items())]
    used = points[:threshold]
    for x, value in points[threshold:]:
        if _interpolate(used, x, prime) != value:
            raise MedvfmError(f"the share of client {x - 1} does not fit the others; one of them is wrong")
    return _interpolate(used, 0, prime)


def _evaluate(coefficients: Sequence[int], x: int, prime: int) -> int:
    """Horner's rule, lowest coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def _interpolate(points: Sequence[tuple[int, int]], at: int, prime: int) -> int:
    """Value at `at` of the polynomial through the points (Lagrange)."""
    total = 0
    for j, (x_j, y_j) in enumerate(points):
        numerator = denominator = 1
        for m, (x_m, _) in enumerate(points):
            if m != j:
                numerator = numerator * (at - x_m) % prime
                denominator = denominator * (x_j - x_m) % prime
        total = (total + y_j * numerator * pow(denominator, -1, prime)) % prime
    return total
