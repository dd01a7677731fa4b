"""The arithmetic of secure aggregation inside a compiled round: masks that cancel in the sum of those that answered.

Client i of n sends y_i = q_i + PRG(b_i) + Σ_{j>i} PRG(s_ij) - Σ_{j<i} PRG(s_ij) mod 2^32. The pairwise masks cancel in
the sum. The server removes PRG(b_i) of clients that answered and the unpaired masks of clients that did not.

**A simulation.** Masks come from threefry, which is not a cryptographic generator, and seeds from a key of the round.
What this is for: exact arithmetic, cost, dropout, and privacy mechanisms on top of the sum. Between hospitals keys are
agreed on and shares sealed by `network.secure_protocol`.

Arithmetic on updates is uint32, pure and jittable.
Source: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.types import MedvfmError


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
