"""Distributed discrete Gaussian and Skellam: every client adds integer noise, the server sees only a sum mod 2^b.

Client: clip to C -> flatten, pad, rotate at random (shared signs, Walsh-Hadamard) -> scale by s -> round at random,
again and again until the norm is within a bound -> add integer noise -> reduce mod 2^b.
Server: sum mod 2^b (secure aggregation) -> unwrap to [-2^(b-1), 2^(b-1)) -> divide by s -> rotate back -> divide by n.

No trusted server is needed, and b bits per coordinate travel. What it costs in ε: `discrete_accounting`.
Source: Kairouz, Liu & Steinke, The Distributed Discrete Gaussian Mechanism, ICML 2021; Agarwal, Kairouz & Liu, The
Skellam Mechanism for Differentially Private Federated Learning, NeurIPS 2021.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.federated.codecs.rotation import rotate, unrotate
from medvfm_jax.federated.core.backends import vary_like
from medvfm_jax.federated.core.records import Privacy, Tree
from medvfm_jax.federated.privacy.clipping import clip_by_norm
from medvfm_jax.federated.privacy.discrete_noise import discrete_gaussian, skellam
from medvfm_jax.federated.privacy.errors import BadPrivacy

_TRIES = 100  # a rounding is accepted with probability >= 1 - β = 0.39, so all fail once in 1e21


class Discrete(NamedTuple):
    """Parameters of the mechanism, the same on every client; `choose` finds them.

    privacy: clip C; noise_multiplier z of the sum of all clients' noise, in clips; expected_clients n, exactly the
    number of clients that add noise. If some of them drop out, their noise is missing and ε is larger.
    """

    privacy: Privacy
    size: int  # number of parameters d
    scale: float  # s, grid points per unit of the update
    bits: int  # b
    noise: Literal["gaussian", "skellam"] = "gaussian"
    beta: float = math.exp(-0.5)  # of the bound on rounded norms

    @property
    def padded(self) -> int:
        """The power of two >= d the rotation works on."""
        return 1 << (self.size - 1).bit_length()

    @property
    def local_variance(self) -> float:
        """Variance of one client's integer noise, (s z C)² / n."""
        deviation = self.scale * self.privacy.noise_multiplier * self.privacy.clip
        return deviation**2 / self.privacy.expected_clients

    @property
    def rounded_bound(self) -> float:
        """Bound on the l2 norm of a rounded update in grid units: the sensitivity the accountant uses.

        min(c + √d, √(c² + d/4 + √(2 ln(1/β)) (c + √d / 2))) with c = s C, d padded.
        """
        c, d = self.scale * self.privacy.clip, self.padded
        tail = math.sqrt(2 * math.log(1 / self.beta)) * (c + math.sqrt(d) / 2)
        return min(c + math.sqrt(d), math.sqrt(c * c + d / 4 + tail))


def choose(
    privacy: Privacy,
    size: int,
    bits: int = 16,
    noise: Literal["gaussian", "skellam"] = "gaussian",
    deviations: float | None = None,
) -> Discrete:
    """Finest grid whose sums wrap around only beyond k standard deviations per coordinate.

    s = √(2^{2b} - n k²) / (2 k √(C² n² / d + n σ²)), σ = z C / √n the noise of one client; k = `deviations` defaults to
    4 for the discrete Gaussian and 3 for Skellam, as in the papers' code. Raises BadPrivacy if b is too small.
    """
    _check(privacy, size, bits)
    k = deviations if deviations is not None else {"gaussian": 4.0, "skellam": 3.0}[noise]
    n, clip = privacy.expected_clients, privacy.clip
    padded = 1 << (size - 1).bit_length()
    numerator = 2.0 ** (2 * bits) - n * k * k
    if numerator <= 0:
        raise BadPrivacy(f"{bits} bits cannot hold the sum of {n:g} clients; use more bits")
    spread = math.sqrt(clip**2 * n**2 / padded + (privacy.noise_multiplier * clip) ** 2)
    return Discrete(privacy, size, math.sqrt(numerator) / (2 * k * spread), bits, noise)


def encode(mechanism: Discrete, key: Array, rotation_key: Array, update: Tree) -> Array:
    """One client's update -> message (d padded,) uint32 in [0, 2^b).

    `rotation_key` is shared by all clients of a round and known to the server; `key` is the client's own.
    """
    round_key, noise_key = jax.random.split(key)
    flat, _ = ravel_pytree(clip_by_norm(update, mechanism.privacy.clip))
    if flat.shape[0] != mechanism.size:
        raise BadPrivacy(
            f"the update has {flat.shape[0]} parameters, the mechanism was made for {mechanism.size}"
        )
    flat = jnp.pad(flat.astype(jnp.float32), (0, mechanism.padded - mechanism.size))
    rotated = rotate(rotation_key, flat[None])[0]
    whole = round_within(round_key, rotated * mechanism.scale, mechanism.rounded_bound)
    if mechanism.local_variance > 0:
        draw = {"gaussian": discrete_gaussian, "skellam": skellam}[mechanism.noise]
        whole = whole + draw(noise_key, whole.shape, mechanism.local_variance)
    return jax.lax.bitcast_convert_type(whole, jnp.uint32) & jnp.uint32(2**mechanism.bits - 1)


def decode_sum(mechanism: Discrete, rotation_key: Array, total: Array, like: Tree) -> Tree:
    """Sum of the messages (d padded,) uint32, modulo 2^b or 2^32 -> mean update like `like`.

    Divides by the fixed n of the mechanism.
    """
    flat, restore = ravel_pytree(like)
    values = unrotate(rotation_key, unwrap(total, mechanism.bits).astype(jnp.float32)[None])[0]
    mean = values[: mechanism.size] / (mechanism.scale * mechanism.privacy.expected_clients)
    return restore(mean.astype(flat.dtype))


def unwrap(total: Array, bits: int) -> Array:
    """uint32 modulo 2^b -> int32 in [-2^(b-1), 2^(b-1))."""
    shift = jnp.uint32(32 - bits)
    # Move the b bits to the top; the arithmetic shift back extends their sign.
    top = jax.lax.bitcast_convert_type(total << shift, jnp.int32)
    return top >> shift.astype(jnp.int32)


def round_within(key: Array, values: Array, bound: float) -> Array:
    """Values (d,) float32 -> int32 (d,), rounded up or down at random so that the l2 norm is at most `bound`.

    Each try is unbiased; conditioning on the norm makes the result very slightly biased, and the sensitivity known.
    Should all tries fail, which also happens to an input longer than the bound, values are rounded towards zero:
    the norm stays within the bound whatever the input was.
    """

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, key, _ = state
        key, draw_key = jax.random.split(key)
        rounded = jnp.floor(values + jax.random.uniform(draw_key, values.shape))
        return count + 1, key, rounded

    def rejected(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < _TRIES) & ~(_norm(state[2]) <= bound)

    start = vary_like((jnp.int32(0), key, jnp.full_like(values, jnp.inf)), values)
    _, _, rounded = jax.lax.while_loop(rejected, attempt, start)
    shortened = jnp.trunc(values * jnp.minimum(1.0, bound / jnp.maximum(_norm(values), bound)))
    return jnp.where(_norm(rounded) <= bound, rounded, shortened).astype(jnp.int32)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def _check(privacy: Privacy, size: int, bits: int) -> None:
    if privacy.adapt is not None:
        raise BadPrivacy("the discrete mechanisms clip to a fixed bound; leave Privacy.adapt out")
    if size < 1 or not 2 <= bits <= 32 or not privacy.clip > 0 or privacy.expected_clients < 1:
        raise BadPrivacy(
            f"no discrete mechanism for {size} parameters, {bits} bits, clip {privacy.clip}, "
            f"{privacy.expected_clients} clients; expected at least 1, 2 to 32, above 0, at least 1"
        )
