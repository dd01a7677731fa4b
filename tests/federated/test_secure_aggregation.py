import random

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from medvfm_jax.federated import secure_aggregation as sa
from medvfm_jax.federated.secret_sharing import BelowThreshold
from medvfm_jax.types import MedvfmError

N, T, D = 5, 3, 4000


@pytest.fixture(scope="module")
def protocol():
    """Five clients that have masked their values; whoever answers is up to the test."""
    draw = random.Random(7).randrange
    values = np.random.default_rng(0).integers(-(2**27), 2**27, (N, D)).astype(np.int32)
    clients = [sa.new_client(i, draw) for i in range(N)]
    keys = {c.index: c.public_key for c in clients}
    dealt = [sa.deal(c, N, T, draw) for c in clients]
    messages = {c.index: sa.mask_message(c, keys, jnp.asarray(values[c.index])) for c in clients}
    return values, clients, keys, dealt, messages


def holders(dealt):
    return [sa.Holder(j, {i: dealt[i][j] for i in range(N)}) for j in range(N)]


@pytest.mark.parametrize("answered", [range(N), (1, 3, 4), (0, 1, 2), (0, 2, 3, 4)])
def test_the_sum_of_those_that_answered_is_exact(protocol, answered):
    values, clients, keys, dealt, messages = protocol
    answered = frozenset(answered)
    revealed = {h: holders(dealt)[h].reveal(answered) for h in sorted(answered)[:T]}
    opened = sa.open_sum({i: messages[i] for i in answered}, keys, revealed, T)
    expected = values[sorted(answered)].astype(np.int64).sum(axis=0)
    np.testing.assert_array_equal(sa.from_field(opened.total), expected)
    # Exactly these secrets were reconstructed, and rightly.
    assert opened.self_seeds == {i: clients[i].self_seed for i in answered}
    assert opened.secret_keys == {i: clients[i].secret_key for i in range(N) if i not in answered}


def test_below_the_threshold_there_is_no_sum(protocol):
    _, _, keys, dealt, messages = protocol
    answered = frozenset((1, 3))
    revealed = {h: holders(dealt)[h].reveal(answered) for h in answered}
    with pytest.raises(BelowThreshold, match="2 messages arrived, 3 are needed"):
        sa.open_sum({i: messages[i] for i in answered}, keys, revealed, T)
    answered = frozenset((0, 1, 3))  # enough messages, but one of the holders went away
    revealed = {h: holders(dealt)[h].reveal(answered) for h in (0, 1)}
    with pytest.raises(BelowThreshold, match="2 shares arrived"):
        sa.open_sum({i: messages[i] for i in answered}, keys, revealed, T)


def uniform(words):
    """p-values of χ² over bytes and of Kolmogorov-Smirnov against the uniform distribution."""
    words = np.asarray(words)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue, stats.kstest(words / 2**32, "uniform").pvalue


def test_a_message_looks_uniform(protocol):
    values, _, _, _, messages = protocol
    assert min(uniform(sa.to_field(jnp.asarray(values[2])))) < 1e-12  # the test can tell
    assert min(p for i in range(N) for p in uniform(messages[i])) > 1e-3
    assert abs(np.corrcoef(values[2], np.asarray(messages[2]).astype(float))[0, 1]) < 0.06


def test_a_late_message_of_a_dropped_client_stays_hidden(protocol):
    """The server knows the dropped client's key, so its pairwise masks; the self mask still hides its values."""
    values, clients, keys, _, messages = protocol
    late = clients[2]
    seeds = np.stack([sa._words(sa.agree(late.secret_key, keys[j])) for j in range(N)])
    pairwise = sa._masked(jnp.zeros(D, jnp.uint32), 2, np.zeros(2, np.uint32), seeds)
    pairwise = pairwise - sa._stream(jnp.zeros(2, jnp.uint32), D)
    left = np.asarray(messages[2] - pairwise)
    assert min(uniform(left)) > 1e-3
    self_mask = np.asarray(sa._stream(jnp.asarray(sa._words(late.self_seed)), D))
    np.testing.assert_array_equal((left - self_mask).view(np.int32), values[2])


def test_a_holder_answers_one_question_only(protocol):
    """Both shares of one client would unmask its message alone."""
    holder = holders(protocol[3])[0]
    first = holder.reveal(frozenset((0, 1, 2)))
    assert holder.reveal(frozenset((0, 1, 2))) == first
    with pytest.raises(sa.RefusedShares, match="it answers once a round"):
        holder.reveal(frozenset((0, 1, 3)))
    with pytest.raises(MedvfmError, match="above half"):
        sa.deal(protocol[1][0], N, 2)


def test_keys_agree_and_masks_cancel(protocol):
    _, clients, keys, _, _ = protocol
    for a in clients:
        for b in clients:
            assert sa.agree(a.secret_key, keys[b.index]) == sa.agree(b.secret_key, keys[a.index])
    zeros = jnp.zeros(D, jnp.int32)
    total = sum(np.asarray(sa.mask_message(c, keys, zeros)) for c in clients)
    total = total - sum(np.asarray(sa._stream(jnp.asarray(sa._words(c.self_seed)), D)) for c in clients)
    assert not total.any()


def test_the_field_wraps_and_the_scale_keeps_sums_from_wrapping():
    n, bound = 37, 0.3
    scale = sa.fixed_point_scale(bound, n)
    assert n * (scale * bound + 1) < 2**31 <= n * (2 * scale * bound + 1)
    worst = jnp.full((n, 2), jnp.float32(np.ceil(scale * bound))).astype(jnp.int32)
    for signed in (worst, -worst):
        total = sa.from_field(sa.to_field(signed).sum(axis=0, dtype=jnp.uint32))
        np.testing.assert_array_equal(total, np.asarray(signed, np.int64).sum(axis=0))
    too_large = sa.from_field(sa.to_field(2 * worst).sum(axis=0, dtype=jnp.uint32))
    assert (np.asarray(too_large) != 2 * np.asarray(worst, np.int64).sum(axis=0)).all()
