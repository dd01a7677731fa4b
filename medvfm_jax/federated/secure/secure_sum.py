"""Secure aggregation as a reduction of a round: masked integers go up, only their sum modulo 2^b is opened.

What a client sends is a vector of whole numbers in [0, 2^b): its update on a fixed-point grid, or, with distributed
noise, the update with the client's share of the noise already in it.  `rounds.make_round` masks the vectors as
`masking` says, adds them, and removes the masks of those that answered; nothing else of the aggregation
sees an update.  Clients that vanish after the masks were agreed on cost nothing but their update, as long as the
threshold answers; below it, the round has no sum and changes nothing.

What stays visible to the server: who answered, the losses and norms that a run logs, and the sum itself.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.federated.codecs.compose import identity
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Algorithm, Codec, Cohort, Report, Tree
from medvfm_jax.federated.privacy import discrete
from medvfm_jax.federated.privacy.client_level import refuse_models
from medvfm_jax.federated.secure.masking import fixed_point_scale, from_field, masked, to_field, unmask

Noise = Literal["none", "discrete_gaussian", "skellam"]

_SELF, _PAIR = 0, 1  # purposes of random numbers


class SecureSum(NamedTuple):
    """How updates become integers and their sum becomes a mean.

    encode(key, rotation_key, upload, weight ()) -> (values (d,) uint32 in [0, 2^bits), fits () bool): False where the
        update lies outside the range of the grid; such a client is left out and named, not cut to size.
    decode(rotation_key, total (d,) uint32, like) -> the mean update, with the structure of ``like``.
    bits: per coordinate on the wire.  clients: in a round, at most.  threshold: fewer answers than this open no sum.
    noise: what ``encode`` adds as the client's share of the noise, where the server adds none; "none" for nothing.
    heaviest: bound on every weight, a public number; with noise all weigh alike.
    rounds: that the noise was made for, None for any number; a site answers no others.
    settings: everything both sides must agree on, for a digest.
    """

    encode: Callable[[Array, Array, Tree, Array], tuple[Array, Array]]
    decode: Callable[[Array, Array, Tree], Tree]
    bits: int
    clients: int
    threshold: int
    noise: Noise
    settings: Mapping[str, str | int | float | None]
    heaviest: float = 1.0
    rounds: int | None = None


def fixed_point(clients: int, threshold: int, reach: float, heaviest: float = 1.0) -> SecureSum:
    """Weighted mean of at most ``clients`` updates on a grid of 32 bits.

    reach: largest absolute value of an entry of weight / heaviest × update; the grid is as fine as the sum allows,
    s = 2^⌊log₂((2^31 / n - 1) / max(reach, 1))⌋ points per unit.  heaviest: bound on every weight, a public number, at
    best the largest one that there is.  The sum of the weights is one more coordinate.

    A mean m of k updates is off by less than (1 + |m|) (k / s) / (W - k / s) in every entry, W the sum of
    weight / heaviest, beside the rounding of float32; by less than 1 / s where all have the largest weight.
    """
    _check(clients, threshold)
    scale = fixed_point_scale(max(reach, 1.0), clients)

    def encode(key: Array, rotation_key: Array, upload: Tree, weight: Array) -> tuple[Array, Array]:
        del rotation_key
        share = jnp.float32(weight) / heaviest
        flat = jnp.append(share * ravel_pytree(upload)[0].astype(jnp.float32), share)
        fits = (jnp.abs(flat) <= max(reach, 1.0)).all() & (share <= 1)
        whole = jnp.floor(flat * scale + jax.random.uniform(key, flat.shape))
        return to_field(jnp.where(fits, whole, 0).astype(jnp.int32)), fits

    def decode(rotation_key: Array, total: Array, like: Tree) -> Tree:
        del rotation_key
        flat, restore = ravel_pytree(like)
        values = from_field(total).astype(jnp.float32) / scale
        return restore((values[:-1] / jnp.where(values[-1] > 0, values[-1], 1)).astype(flat.dtype))

    settings = {
        "clients": clients,
        "threshold": threshold,
        "reach": reach,
        "heaviest": heaviest,
    }
    return SecureSum(encode, decode, 32, clients, threshold, "none", settings, heaviest)


def distributed_noise(mechanism: discrete.Discrete, threshold: int, rounds: int | None = None) -> SecureSum:
    """Sum of updates that carry their own noise, see `privacy.discrete`; every client of a round must add it.

    rounds: whose sums the guarantee is about.
    """
    privacy, clients = mechanism.privacy, int(mechanism.privacy.expected_clients)
    _check(clients, threshold)

    def encode(key: Array, rotation_key: Array, upload: Tree, weight: Array) -> tuple[Array, Array]:
        del weight  # privacy weighs all alike
        return discrete.encode(mechanism, key, rotation_key, upload), jnp.array(True)

    def decode(rotation_key: Array, total: Array, like: Tree) -> Tree:
        return discrete.decode_sum(mechanism, rotation_key, total, like)

    noise: Noise = "skellam" if mechanism.noise == "skellam" else "discrete_gaussian"
    settings = {
        "clients": clients,
        "threshold": threshold,
        "clip": privacy.clip,
        "noise_multiplier": privacy.noise_multiplier,
        "scale": mechanism.scale,
        "bits": mechanism.bits,
        "noise": noise,
        "rounds": rounds,
    }
    return SecureSum(encode, decode, mechanism.bits, clients, threshold, noise, settings, rounds=rounds)


SERVER = np.uint32(2**32 - 3)  # no client has this id; of the randomness of aggregation, as in `rounds`


def secure_cohort(secure: SecureSum, answered: Array, population: int, round_key: Array) -> Cohort:
    """What an algorithm may know when it aggregates: who answered, unless their noise is to hide that.

    With distributed noise every sum has the same divisor, so the share of those that came is a public constant too.
    """
    key = jax.random.fold_in(round_key, SERVER)
    if secure.noise != "none":
        return Cohort(None, None, jnp.float32(secure.clients / population), None, key)
    here = jnp.asarray(answered)
    return Cohort(here.astype(jnp.float32), here, here.sum().astype(jnp.float32) / population, (), key)


def check_summable(secure: SecureSum, algorithm: Algorithm, codec: Codec, report: Report) -> None:
    """Raise BadFederation unless a round of this algorithm needs nothing of the uploads but a mean that fits the grid.

    Raises BadPrivacy where the clients add noise and what they upload must not be clipped.
    """
    if algorithm.reduction != "mean":
        raise BadFederation(
            "Secure aggregation opens a sum alone, and this algorithm looks at every upload: leave it out or choose an "
            "algorithm that averages."
        )
    if jax.tree.leaves(report.public):
        raise BadFederation(
            "This algorithm averages more than updates (step counts), which secure aggregation does not carry: choose "
            "fedavg or another that averages updates alone."
        )
    if secure.noise != "none":
        refuse_models(algorithm)
    elif algorithm.weights == "upload":
        raise BadFederation(
            "The weights of this algorithm follow from what clients upload and have no bound that is known before, as "
            "the grid of secure aggregation needs: leave it out or choose an algorithm that weighs by images."
        )
    elif algorithm.weights == "equal" and secure.heaviest != 1:
        raise BadFederation(
            f"This algorithm counts every client as 1, and the grid is made for weights up to {secure.heaviest:g}, "
            "beside which an update would be lost: make it with heaviest=1."
        )
    if codec is not identity():
        raise BadFederation(
            "A compressed update cannot be added up under masks: leave --codec and --memory out with secure "
            "aggregation."
        )


def _check(clients: int, threshold: int) -> None:
    if not clients / 2 < threshold <= clients:
        raise BadFederation(
            f"Secure aggregation needs a threshold above half of the {clients} clients of a round and at most all, not "
            f"{threshold}: below half, a server could ask two groups and unmask a single update."
        )


def least_answers(secure: SecureSum, joined: Array) -> Array:
    """Number that joined () -> the answers without which there is no sum (); two at least, for one is no sum."""
    return jnp.maximum(2, -(-joined * secure.threshold // secure.clients))


def send(secure: SecureSum, values: Array, row: Array, ids: Array, joined: Array, mask_key: Array) -> Array:
    """Values (d,) of the client in ``row`` -> what it sends (d,) uint32: masked against all that joined.

    ids (n,) uint32 and joined (n,) bool of the whole cohort.  Simulation grade, see `masking`: seeds come
    from ``mask_key``, as if keys had been agreed on.
    """
    pairs = jax.vmap(lambda other: _pair_seed(mask_key, ids[row], other))(ids)
    return _modulo(secure, masked(values, row, _self_seed(mask_key, ids[row]), pairs, joined))


def open_sum(
    secure: SecureSum, total: Array, ids: Array, joined: Array, answered: Array, mask_key: Array
) -> Array:
    """Sum of what arrived (d,) -> sum of the values of those that answered (d,) uint32, modulo 2^bits."""
    seeds = jax.vmap(lambda i: _self_seed(mask_key, i))(ids)
    pairs = jax.vmap(lambda i: jax.vmap(lambda j: _pair_seed(mask_key, i, j))(ids))(ids)
    return _modulo(secure, unmask(total, answered, seeds, pairs, joined))


def _modulo(secure: SecureSum, values: Array) -> Array:
    return values & jnp.uint32(2**secure.bits - 1)


def _self_seed(key: Array, client: Array) -> Array:
    return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, _SELF), client), (2,), jnp.uint32)


def _pair_seed(key: Array, one: Array, other: Array) -> Array:
    key = jax.random.fold_in(jax.random.fold_in(key, _PAIR), jnp.minimum(one, other))
    return jax.random.bits(jax.random.fold_in(key, jnp.maximum(one, other)), (2,), jnp.uint32)
