"""The protocol between nodes: exact sums, uniform messages, and the questions that must not be answered."""

import numpy as np
import pytest
from scipy import stats

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network.messages import BadMessage
from medvfm_jax.federated.secure.secret_sharing import BelowThreshold
from medvfm_jax.types import MedvfmError

pytest.importorskip("cryptography")
from medvfm_jax.federated.network import secure_protocol as sp

ROWS, T, D = (0, 2, 3, 7), 3, 4096


class Sites:
    """Four sites of one round, all in one process."""

    def __init__(self, rows=ROWS, threshold=T, run="a" * 32, number=5):
        self.secrets = {row: sp.new_secrets() for row in rows}
        keys = {row: sp.public_keys(own) for row, own in self.secrets.items()}
        self.about = sp.Round(run, number, keys, threshold)
        self.dealt = {row: sp.deal(own, row, self.about) for row, own in self.secrets.items()}
        self.values = {row: np.random.default_rng(row).integers(0, 2**20, D, dtype=np.uint32) for row in rows}

    def shares(self, row, partners):
        return sp.open_shares(self.secrets[row], row, self.about, {s: self.dealt[s][row] for s in partners})

    def message(self, row, partners, bits=32):
        return sp.mask(self.secrets[row], row, self.about, dict.fromkeys(partners), self.values[row], bits)

    def opened(self, partners, answered, holders, bits=32):
        partners, answered = frozenset(partners), frozenset(answered)
        total = sum(self.message(row, partners, bits) for row in answered)
        revealed = {h: sp.reveal(self.shares(h, partners), answered) for h in holders}
        return sp.unmask(total, self.about, partners, answered, revealed, bits)


@pytest.fixture(scope="module")
def sites():
    return Sites()


@pytest.mark.parametrize(
    ("partners", "answered", "holders"),
    [
        (ROWS, ROWS, ROWS),
        (ROWS, (0, 3, 7), (0, 3, 7)),
        (ROWS, ROWS, (7, 2, 0)),
        ((0, 2, 7), (0, 2, 7), (0, 2, 7)),
    ],
    ids=["all", "one vanishes after dealing", "one holder less", "one vanishes before dealing"],
)
@pytest.mark.parametrize("bits", [32, 16])
def test_the_sum_of_those_that_answered_is_exact(sites, partners, answered, holders, bits):
    expected = sum(sites.values[row].astype(np.uint64) for row in answered) % 2**bits
    np.testing.assert_array_equal(sites.opened(partners, answered, holders, bits), expected)


def uniform(words):
    """p-values of χ² over bytes and of Kolmogorov-Smirnov."""
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue, stats.kstest(words / 2**32, "uniform").pvalue


def test_what_the_server_sees_of_a_site_is_uniform(sites):
    assert min(uniform(sites.values[2])) < 1e-12  # the test can tell
    for row in ROWS:
        message = sites.message(row, ROWS)
        assert min(uniform(message)) > 1e-4
        assert abs(np.corrcoef(sites.values[row], message.astype(float))[0, 1]) < 0.07


def test_a_late_message_of_a_site_that_was_given_up_stays_hidden(sites):
    """The server has reconstructed its mask key; its own mask still covers its values."""
    late = sites.message(2, ROWS)
    pairwise = sum(
        sp._pair_stream(sites.secrets[2].mask, sites.about, 2, other, D) for other in ROWS if other != 2
    )
    left = late - pairwise
    assert min(uniform(left)) > 1e-4
    own = sp._stream(sp._derive(sites.secrets[2].own, sites.about.bound("own", 2)), D)
    np.testing.assert_array_equal(left - own, sites.values[2])


def test_fewer_holders_than_the_threshold_open_nothing(sites):
    with pytest.raises(BelowThreshold, match="2 shares arrived, 3 are needed"):
        sites.opened(ROWS, ROWS, (0, 2))
    # Nor do two shares say anything: any value of the third is consistent with some secret.
    with pytest.raises(BadFederation, match="above half"):
        Sites(threshold=2)


def test_a_server_that_shows_two_lists_of_keys_gets_nothing(sites):
    """Sites that were shown different lists cannot open each other's shares, so the round ends there."""
    fake = sp.public_keys(sp.new_secrets())
    other = sites.about._replace(keys={**sites.about.keys, 7: fake})
    dealt = sp.deal(sites.secrets[0], 0, other)
    with pytest.raises(BadMessage, match="do not open"):
        sp.open_shares(sites.secrets[2], 2, sites.about, {0: dealt[2]})


@pytest.mark.parametrize("change", ["bit", "round", "run", "receiver", "sender"])
def test_shares_that_were_changed_or_replayed_do_not_open(sites, change):
    data, me, sender, about = bytearray(sites.dealt[0][2]), 2, 0, sites.about
    if change == "bit":
        data[40] ^= 1
    elif change == "round":
        about = about._replace(number=6)
    elif change == "run":
        about = about._replace(run="b" * 32)
    elif change == "receiver":
        me = 3
    else:
        sender = 3
    with pytest.raises(BadMessage, match="do not open"):
        sp.open_shares(sites.secrets[me], me, about, {sender: bytes(data)})


def test_a_wrong_share_is_found(sites):
    """With one share more than needed it contradicts the others; without, it makes another secret than was dealt."""
    partners = answered = frozenset(ROWS)
    revealed = {h: sp.reveal(sites.shares(h, partners), answered) for h in ROWS}
    revealed[0] = {**revealed[0], 2: bytes(sp.SHARE)}
    total = np.zeros(D, np.uint32)
    with pytest.raises(MedvfmError, match="wrong"):
        sp.unmask(total, sites.about, partners, answered, revealed, 32)
    gone = frozenset((0, 3, 7))
    revealed = {h: sp.reveal(sites.shares(h, partners), gone) for h in gone}
    revealed[0] = {**revealed[0], 2: bytes(sp.SHARE)}
    with pytest.raises(MedvfmError, match="wrong"):
        sp.unmask(total, sites.about, partners, gone, revealed, 32)


def test_a_public_key_of_small_order_is_refused(sites):
    keys = {**sites.about.keys, 7: (bytes(32), bytes(32))}
    with pytest.raises(BadMessage, match="public key"):
        sp.deal(sites.secrets[0], 0, sites.about._replace(keys=keys))


def test_secrets_are_never_the_same_twice():
    drawn = [part for _ in range(20) for part in sp.new_secrets()]
    assert len(set(drawn)) == 60
