import itertools
import random
from collections import Counter

import pytest

from medvfm_jax.federated.secure.secret_sharing import PRIME, BelowThreshold, reconstruct, share
from medvfm_jax.types import MedvfmError


def draw():
    return random.Random(3).randrange


@pytest.mark.parametrize(("clients", "threshold"), [(1, 1), (4, 1), (5, 3), (6, 6)])
@pytest.mark.parametrize("secret", [0, 1, PRIME - 1, 123456789012345678])
def test_any_threshold_shares_give_the_secret(clients, threshold, secret):
    shares = share(secret, clients, threshold, draw=draw())
    for size in range(threshold, clients + 1):
        for kept in itertools.combinations(shares, size):
            assert reconstruct({i: shares[i] for i in kept}, threshold) == secret


def test_fewer_shares_say_nothing_about_the_secret():
    """Over all polynomials of degree 2 modulo 7, two shares are uniform on pairs, whatever the secret is."""
    for secret in range(7):
        seen = Counter()
        for coefficients in itertools.product(range(7), repeat=2):
            queue = iter(coefficients)
            shares = share(secret, 4, 3, prime=7, draw=lambda k, queue=queue: next(queue))
            seen[shares[0], shares[3]] += 1
        assert seen == Counter(dict.fromkeys(itertools.product(range(7), repeat=2), 1))


def test_fewer_shares_than_the_threshold_are_refused():
    shares = share(42, 5, 3, draw=draw())
    with pytest.raises(BelowThreshold, match="2 shares arrived, 3 are needed"):
        reconstruct({0: shares[0], 4: shares[4]}, 3)


def test_a_wrong_share_among_more_than_enough_is_noticed():
    shares = share(42, 5, 3, draw=draw())
    shares[4] = (shares[4] + 1) % PRIME
    with pytest.raises(MedvfmError, match="client 4 does not fit"):
        reconstruct(shares, 3)


@pytest.mark.parametrize(
    ("secret", "clients", "threshold"), [(PRIME, 3, 2), (-1, 3, 2), (1, 3, 4), (1, 3, 0)]
)
def test_impossible_sharings_are_refused(secret, clients, threshold):
    with pytest.raises(MedvfmError):
        share(secret, clients, threshold)
