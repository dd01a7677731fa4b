"""One bit per entry: its sign, with one scale per leaf or per rotated block."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.codecs.compose import leafwise, require, seeded
from medvfm_jax.federated.codecs.rotation import (
    block_size,
    from_blocks,
    require_power_of_two,
    rotate,
    to_blocks,
    unrotate,
)
from medvfm_jax.federated.codecs.wire import Codes
from medvfm_jax.federated.core.records import Codec

_SMALLEST_BLOCK = 64  # below it, two Hadamard rotations are too few signs to act as a uniform rotation


class Signs(NamedTuple):
    """negative (..., n): 1 where an entry is below zero; scale (..., 1)."""

    negative: Codes
    scale: Array


def scaled_sign() -> Codec:
    """(|x|_1 / d) sign(x) for each leaf: d + 32 bits.

    Biased; |C(x) - x|^2 = |x|^2 - |x|_1^2 / d, so delta = |x|_1^2 / (d |x|^2) exactly, between 1/d (one entry) and 1
    (equal magnitudes) (Karimireddy et al. 2019).  Use it under ``error_feedback``.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847
    """
    return leafwise(
        lambda key, leaf: _signs(leaf.ravel(), jnp.abs(leaf).mean().reshape(1)),
        lambda message, like: _values(message),
    )


def drive(exact_along: bool = True, rounds: int = 2, largest_block: int = 4096) -> Codec:
    """DRIVE (Vargaftik et al. 2021): the signs of the rotated update, one bit per entry of the padded leaf.

    The scale of a block x rotated to y is S = |x|^2 / |y|_1 (``exact_along``: the part along x is exact in every
    draw, squared error near pi/2 - 1 = 0.571 |x|^2) or |y|_1 / B (least squares: a contraction, delta near 2/pi).

    Biased with either scale: the paper's unbiasedness holds for a uniform rotation, whose cost is the square of the
    block; rotations by Hadamard matrices and random signs, as here, are not uniform.  One returns only the first of
    two entries 1 and 1/2; with ``rounds`` = 2 in blocks of at least 64, which is why small leaves are padded to 64,
    noise of a hundredth around a spike still arrives 1.4 times too large in blocks of 64.  ``rotated`` with one bit
    is unbiased.  Use DRIVE with the least squares under ``error_feedback`` or ``ef21``.

    One seed of 32 bits per update; per leaf d' + 32 (number of blocks) bits, d' >= d the padded size.

    Args:
        exact_along: which scale, see above.
        rounds: rounds of random signs and Hadamard transform in a rotation.
        largest_block: largest block that is rotated at once, a power of two.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Vargaftik et al. 2021, https://arxiv.org/abs/2105.08339.  Differs: blocks are rotated by Hadamard
        matrices and random signs, which are not uniform.
    """
    require(rounds > 0, "drive", "rounds", rounds, "at least 1")
    require_power_of_two("drive", largest_block, _SMALLEST_BLOCK)

    def encode(shared: Array, private: Array, leaf: Array) -> Signs:
        del private
        blocks = to_blocks(leaf, block_size(leaf.size, 32, _SMALLEST_BLOCK, largest_block))
        rotated = rotate(shared, blocks, rounds)
        length = jnp.abs(rotated).sum(axis=-1, keepdims=True)
        if not exact_along:
            return _signs(rotated, length / rotated.shape[-1])
        # |x| (|x| / |y|_1), not |x|^2: squares of small float32 updates would vanish.
        norm = jnp.linalg.norm(blocks, axis=-1, keepdims=True)
        return _signs(rotated, norm * (norm / jnp.where(length > 0, length, 1)))

    def decode(shared: Array, message: Signs, like: Array) -> Array:
        return from_blocks(unrotate(shared, _values(message), rounds), like)

    return seeded(encode, decode)


def _signs(x: Array, scale: Array) -> Signs:
    return Signs(Codes((x < 0).astype(jnp.uint8), 1), scale)


def _values(message: Signs) -> Array:
    return jnp.where(message.negative.values, -message.scale, message.scale)
