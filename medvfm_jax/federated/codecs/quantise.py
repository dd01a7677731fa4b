"""Quantisers: every entry becomes one of a few levels, chosen at random so that the mean is right.

All of them are unbiased, so they average out over clients and rounds without any memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.codecs.compose import leafwise, require
from medvfm_jax.federated.codecs.wire import Codes, code_dtype
from medvfm_jax.federated.core.records import Codec

_MANTISSA = 23  # bits of a float32 that its exponent stands above


class Uniform(NamedTuple):
    """codes (..., n) of b bits; low, step (..., 1): an entry is low + code * step."""

    codes: Codes
    low: Array
    step: Array


class Signed(NamedTuple):
    """norm (); codes (d,): the sign in the highest bit, the level 0..s below it."""

    norm: Array
    codes: Codes


def uniform(bits: int) -> Codec:
    """2^b levels between minimum and maximum of each leaf: b d + 64 bits.

    With step D = (max - min) / (2^b - 1): E|Q(x) - x|^2 <= d D^2 / 4 <= |x|^2 d / (2 (2^b - 1)^2).

    Args:
        bits: b of each entry.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """
    require(bits in range(1, 17), "uniform", "bits", bits, "an integer from 1 to 16")
    return leafwise(
        lambda key, leaf: quantise_rows(key, leaf.ravel(), bits),
        lambda message, like: dequantise_rows(message),
    )


def int8() -> Codec:
    """Uniform with 8 bits: a quarter of float32, omega <= d / 130050.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """
    return uniform(8)


def int4() -> Codec:
    """Uniform with 4 bits: an eighth of float32, omega <= d / 450.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.
    """
    return uniform(4)


def qsgd(levels: int) -> Codec:
    """|x| sign(x_i) l_i / s with l_i = s |x_i| / |x| rounded at random: 32 + d (1 + ceil(log2(s + 1))) bits.

    omega <= min(d / s^2, sqrt(d) / s) per leaf (Alistarh et al. 2017, QSGD, lemma 3.1).

    Args:
        levels: s, steps between 0 and the norm of a leaf.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Alistarh et al. 2017, https://arxiv.org/abs/1610.02132
    """
    require(0 < levels < 2**15, "qsgd", "levels", levels, "an integer from 1 to 32767")
    level_width = levels.bit_length()  # ceil(log2(levels + 1))

    def encode(key: Array, leaf: Array) -> Signed:
        flat = leaf.ravel()
        norm = jnp.linalg.norm(flat)
        level = round_at_random(key, levels * jnp.abs(flat) / jnp.where(norm > 0, norm, 1))
        level = jnp.minimum(level, levels)  # |x_i| / |x| may exceed 1 by rounding
        dtype = code_dtype(level_width + 1)
        sign = jnp.signbit(flat).astype(dtype) << level_width
        return Signed(norm, Codes(sign | level.astype(dtype), level_width + 1))

    def decode(message: Signed, like: Array) -> Array:
        codes = message.codes.values
        level = (codes & ((1 << level_width) - 1)).astype(message.norm.dtype)
        sign = jnp.where(codes >> level_width, -1, 1).astype(message.norm.dtype)
        return message.norm * sign * (level / levels)

    return leafwise(encode, decode)


def natural() -> Codec:
    """Round to one of the two neighbouring powers of two: sign and exponent of a float32, 9 d bits.

    Unbiased with omega = 1/8 (Horvath et al. 2019, natural compression).  The chance of rounding up is the
    mantissa read as a fraction, so a random mantissa is added and its carry kept: exact, subnormals included.
    Magnitudes above 2^127 are rounded down to it.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Horvath et al. 2019, https://arxiv.org/abs/1905.10988
    """

    def encode(key: Array, leaf: Array) -> Codes:
        flat = leaf.ravel().astype(jnp.float32)
        word = jax.lax.bitcast_convert_type(flat, jnp.uint32)
        sign, magnitude = word >> 31, word & jnp.uint32(0x7FFFFFFF)
        noise = jax.random.bits(key, flat.shape, jnp.uint32) >> (32 - _MANTISSA)
        rounded = jnp.minimum((magnitude + noise) >> _MANTISSA, 254)
        exponent = jnp.where(jnp.isfinite(flat), rounded, 255)  # 255 is infinity: it must arrive as such
        return Codes((sign << 8 | exponent).astype(jnp.uint16), 9)

    def decode(message: Codes, like: Array) -> Array:
        return jax.lax.bitcast_convert_type(message.values.astype(jnp.uint32) << _MANTISSA, jnp.float32)

    return leafwise(encode, decode)


def quantise_rows(key: Array, rows: Array, bits: int) -> Uniform:
    """Rows (..., n) -> 2^bits levels between minimum and maximum of every row."""
    top = 2**bits - 1
    low = rows.min(axis=-1, keepdims=True)
    step = (rows.max(axis=-1, keepdims=True) - low) / top
    level = round_at_random(key, (rows - low) / jnp.where(step > 0, step, 1))
    codes = jnp.clip(level, 0, top).astype(code_dtype(bits))
    return Uniform(Codes(codes, bits), low, step)


def dequantise_rows(message: Uniform) -> Array:
    """The inverse of ``quantise_rows`` in expectation: (..., n)."""
    return message.low + message.codes.values.astype(message.low.dtype) * message.step


def round_at_random(key: Array, x: Array) -> Array:
    """Floor or floor + 1, with mean x.  (floor(x + noise) would lose the low bits of the noise for large x.)"""
    floor = jnp.floor(x)
    return floor + (jax.random.uniform(key, x.shape, x.dtype) < x - floor)
