"""Sparse codecs: a few entries of each leaf, the largest ones or random ones."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.codecs.compose import leafwise, require, seeded
from medvfm_jax.federated.codecs.wire import Codes, code_dtype, index_width
from medvfm_jax.federated.core.records import Codec


class Sparse(NamedTuple):
    """values (k,) of the leaf's dtype, indices (k,) into the flat leaf of d entries, ceil(log2 d) bits each."""

    values: Array
    indices: Codes


def top_k(fraction: float) -> Codec:
    """Send the k = ceil(fraction d) entries of largest magnitude: k (32 + ceil(log2 d)) bits per leaf.

    Biased; a contraction with delta >= k/d, attained when all magnitudes are equal (Stich et al. 2018).  Use it
    under ``error_feedback`` or ``ef21``, or what is small in every round is never sent.

    Args:
        fraction: share of the entries of each leaf that is sent.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Stich et al. 2018, https://arxiv.org/abs/1809.07599
    """
    _check_fraction("top_k", fraction)

    def encode(key: Array, leaf: Array) -> Sparse:
        del key
        flat = leaf.ravel()
        _, places = jax.lax.top_k(jnp.abs(flat), kept(fraction, flat.size))
        width = index_width(flat.size)
        return Sparse(flat[places], Codes(places.astype(code_dtype(width)), width))

    def decode(message: Sparse, like: Array) -> Array:
        return _scatter(message.values, message.indices.values, like)

    return leafwise(encode, decode)


def rand_k(fraction: float) -> Codec:
    """Send k = ceil(fraction d) entries chosen at random, times d/k: 32 k bits per leaf, and one seed of 32 bits.

    Unbiased with omega = d/k - 1 exactly (Stich et al. 2018); the receiver draws the same places from the seed.

    Args:
        fraction: share of the entries of each leaf that is sent.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Stich et al. 2018, https://arxiv.org/abs/1809.07599
    """
    _check_fraction("rand_k", fraction)

    def encode(shared: Array, private: Array, leaf: Array) -> Array:
        del private
        return leaf.ravel()[_places(shared, fraction, leaf.size)]

    def decode(shared: Array, values: Array, like: Array) -> Array:
        size = math.prod(like.shape)
        places = _places(shared, fraction, size)
        return _scatter(values * jnp.asarray(size / places.size, values.dtype), places, like)

    return seeded(encode, decode)


def kept(fraction: float, size: int) -> int:
    """k = ceil(fraction size), and never above size."""
    return min(size, math.ceil(fraction * size))


def _places(key: Array, fraction: float, size: int) -> Array:
    """k distinct places out of ``size``, every subset alike: where the largest of i.i.d. numbers are."""
    return jax.lax.top_k(jax.random.bits(key, (size,), jnp.uint32), kept(fraction, size))[1]


def _scatter(values: Array, places: Array, like: Array) -> Array:
    """Bytes from a stranger may name places beyond the leaf: those are dropped."""
    flat = jnp.zeros(math.prod(like.shape), values.dtype)
    return flat.at[places].set(values, mode="drop")


def _check_fraction(codec: str, fraction: float) -> None:
    require(0 < fraction <= 1, codec, "fraction", fraction, "0 < fraction <= 1")
