"""Secure aggregation, simulated faithfully: the server sees masked messages and learns their sum, nothing else.

Client i of n sends y_i = q_i + PRG(b_i) + Σ_{j>i} PRG(s_ij) - Σ_{j<i} PRG(s_ij) mod 2^32. The pairwise masks cancel in
the sum. The server removes PRG(b_i) of clients that answered and the unpaired masks of clients that did not; it
reconstructs what it needs from Shamir shares, of which any t of n suffice and t - 1 say nothing.

**Not secure.** The protocol is followed step by step, its building blocks are toys: masks come from threefry, which
is not a cryptographic generator, and keys are agreed in the multiplicative group modulo 2^61 - 1, which is small
enough to break. A deployment needs AES-CTR or ChaCha20, X25519, authenticated channels, and shares encrypted for
their receivers. What this is for: the exact arithmetic, the cost, dropout, and privacy mechanisms on top of the sum.

Arithmetic on updates is uint32, pure and jittable; keys and shares live on the host.
Source: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.
"""

import secrets as system_random
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.secret_sharing import PRIME, BelowThreshold, reconstruct, share
from medvfm_jax.types import MedvfmError

_GENERATOR = 37  # of the multiplicative group modulo PRIME

Draw = Callable[[int], int]  # Draw(k): an integer uniform in [0, k)


class RefusedShares(MedvfmError):
    """A client was asked for shares that would expose somebody's message."""


class Client(NamedTuple):
    """The secrets of one client for one round; a client may mask one message with them, never two."""

    index: int
    secret_key: int
    public_key: int
    self_seed: int


class Server(NamedTuple):
    """What the server ends with: the sum mod 2^32, and the seeds it had to reconstruct."""

    total: Array  # (d,) uint32
    self_seeds: dict[int, int]  # of clients that answered
    secret_keys: dict[int, int]  # of clients that did not


# --- arithmetic on updates -------------------------------------------------------------------------------------


def to_field(values: Array) -> Array:
    """int32 -> uint32, two's complement: additions of the signed numbers are additions mod 2^32."""
    return jax.lax.bitcast_convert_type(values, jnp.uint32)


def from_field(values: Array) -> Array:
    """uint32 -> int32; right as long as the true sum lies in [-2^31, 2^31)."""
    return jax.lax.bitcast_convert_type(values, jnp.int32)


def fixed_point_scale(bound: float, clients: int) -> float:
    """Largest power of two s so that the sum of `clients` values within ±bound fits: n (s bound + 1) < 2^31.

    The one is for stochastic rounding. A power of two makes scaling exact.
    """
    if not bound > 0 or not 1 <= clients < 2**30:
        raise MedvfmError(
            f"no fixed-point scale for bound {bound} and {clients} clients; both must be positive"
        )
    return 2.0 ** np.floor(np.log2(((2**31 - 1) / clients - 1) / bound))


def masked(
    values: Array, client: Array, self_seed: Array, pair_seeds: Array, joined: Array | None = None
) -> Array:
    """values (d,) uint32, client () int, self_seed (2,) and pair_seeds (n, 2) uint32 -> masked message (d,) uint32.

    `pair_seeds[j]` is what this client shares with client j; its own row is ignored, and so are those of clients that
    are not in the round at all: joined (n,) bool, None for all.
    """
    n = pair_seeds.shape[0]
    sign = jnp.where(jnp.arange(n) > client, jnp.uint32(1), jnp.uint32(2**32 - 1))
    sign = jnp.where(jnp.arange(n) == client, jnp.uint32(0), sign)
    sign = sign if joined is None else jnp.where(joined, sign, jnp.uint32(0))

    def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
        seed, factor = term
        return total + factor * _stream(seed, total.shape[0]), None

    start = values + _stream(self_seed, values.shape[0])
    return jax.lax.scan(add, start, (pair_seeds, sign))[0]


def unmask(
    total: Array, answered: Array, self_seeds: Array, pair_seeds: Array, joined: Array | None = None
) -> Array:
    """Sum of the messages that arrived (d,) uint32 -> sum of their values (d,) uint32.

    answered (n,) bool; self_seeds (n, 2), pair_seeds (n, n, 2) uint32, of which only rows of clients that answered
    (self) and of clients that did not (pairs) are used: the others may hold anything, and the server does not know
    them.  joined (n,) bool: who is in the round at all, None for all.
    """
    length = total.shape[0]
    answered, self_seeds, pair_seeds = map(jnp.asarray, (answered, self_seeds, pair_seeds))
    gone = ~answered if joined is None else joined & ~answered

    def less(total: Array, needed: Array, factor: Array, seed: Array) -> Array:
        """Without a stream, which is made only if it is needed: of n² pairs few are."""
        return jax.lax.cond(needed, lambda: total - factor * _stream(seed, length), lambda: total)

    def one_self(total: Array, i: Array) -> tuple[Array, None]:
        return less(total, answered[i], jnp.uint32(1), self_seeds[i]), None

    def one_pair(total: Array, pair: Array) -> tuple[Array, None]:
        i, j = pair  # j answered, i did not: j's message still holds their mask
        sign = jnp.where(i > j, jnp.uint32(1), jnp.uint32(2**32 - 1))
        return less(total, answered[j] & gone[i], sign, pair_seeds[i, j]), None

    n = answered.shape[0]
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(n), jnp.arange(n), indexing="ij"), -1).reshape(-1, 2)
    total, _ = jax.lax.scan(one_self, total, jnp.arange(n))
    return jax.lax.scan(one_pair, total, pairs)[0]


def _stream(seed: Array, length: int) -> Array:
    """PRG: seed (2,) uint32 -> (length,) uint32."""
    return jax.random.bits(jax.random.wrap_key_data(seed, impl="threefry2x32"), (length,), jnp.uint32)


# --- the protocol ----------------------------------------------------------------------------------------------


def new_client(index: int, draw: Draw = system_random.randbelow) -> Client:
    """Round 0 of the protocol: fresh secrets and the public key the client advertises."""
    secret_key = 1 + draw(PRIME - 2)
    return Client(index, secret_key, pow(_GENERATOR, secret_key, PRIME), draw(PRIME))


def agree(secret_key: int, public_key: int) -> int:
    """Diffie-Hellman: both sides get the same seed s_ij from one secret key and the other's public key."""
    return pow(public_key, secret_key, PRIME)


def deal(client: Client, clients: int, threshold: int, draw: Draw = system_random.randbelow) -> dict:
    """Round 1: {receiver: {"self": share of b_i, "key": share of the secret key}}.

    The threshold must be above half of the clients: otherwise a server could ask two disjoint groups, one for each
    kind of share, and unmask a single message.
    """
    if not clients / 2 < threshold <= clients:
        raise MedvfmError(
            f"the threshold {threshold} must be above half of the {clients} clients and at most all"
        )
    self_shares = share(client.self_seed, clients, threshold, draw=draw)
    key_shares = share(client.secret_key, clients, threshold, draw=draw)
    return {j: {"self": self_shares[j], "key": key_shares[j]} for j in range(clients)}


def mask_message(client: Client, public_keys: Mapping[int, int], values: Array) -> Array:
    """Round 2: values (d,) int32 or uint32 -> the message (d,) uint32 the server receives."""
    values = to_field(values) if values.dtype == jnp.int32 else values
    pairs = {j: agree(client.secret_key, key) for j, key in public_keys.items()}
    seeds = np.stack([_words(pairs[j]) for j in range(len(public_keys))])
    return _masked(values, client.index, _words(client.self_seed), seeds)


class Holder:
    """One client's shares of everybody's secrets, and the one answer it gives about them."""

    def __init__(self, index: int, shares: Mapping[int, Mapping[str, int]]):
        self._index, self._shares, self._answered = index, dict(shares), None

    def reveal(self, answered: frozenset[int]) -> dict[int, int]:
        """Round 3: shares of b_i of clients that answered, of the secret keys of those that did not.

        Asked again about another set, a client refuses: both kinds of one client would expose its message.
        """
        if self._answered not in (None, answered):
            raise RefusedShares(
                f"client {self._index} has already revealed shares for {sorted(self._answered)} and is asked for "
                f"{sorted(answered)}; it answers once a round"
            )
        self._answered = answered
        return {i: s["self" if i in answered else "key"] for i, s in self._shares.items()}


def open_sum(
    messages: Mapping[int, Array],
    public_keys: Mapping[int, int],
    revealed: Mapping[int, Mapping],
    threshold: int,
) -> Server:
    """Messages of the clients that answered and the shares somebody revealed about them -> their sum.

    `revealed`: {holder: {client: share}}. Raises BelowThreshold if fewer than `threshold` messages or holders are
    there.
    """
    if len(messages) < threshold:
        raise BelowThreshold(
            f"{len(messages)} messages arrived, {threshold} are needed; this round has no sum"
        )
    clients = range(len(public_keys))
    secrets = {i: reconstruct({h: s[i] for h, s in revealed.items()}, threshold) for i in clients}
    n = len(public_keys)
    self_seeds, pair_seeds = np.zeros((n, 2), np.uint32), np.zeros((n, n, 2), np.uint32)
    for i in clients:
        if i in messages:
            self_seeds[i] = _words(secrets[i])
        else:
            pair_seeds[i] = [_words(agree(secrets[i], public_keys[j])) for j in clients]
    answered = np.array([i in messages for i in clients])
    total = jnp.stack(list(messages.values())).sum(axis=0, dtype=jnp.uint32)
    total = _unmask(total, answered, self_seeds, pair_seeds)
    return Server(
        total,
        {i: s for i, s in secrets.items() if i in messages},
        {i: s for i, s in secrets.items() if i not in messages},
    )


_masked, _unmask = jax.jit(masked), jax.jit(unmask)


def _words(seed: int) -> np.ndarray:
    """Seed below 2^61 -> its two 32-bit words (2,) uint32, a threefry key."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
