"""Random rotations: they spread an update evenly over its coordinates, and a coarse quantiser then loses little.

A leaf is cut into blocks of a power of two, padded with zeros, and every block is rotated by H D: random signs,
then the orthonormal Walsh-Hadamard matrix.  The signs follow from a seed that the receiver knows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.federated.codecs.compose import require, seeded
from medvfm_jax.federated.codecs.quantise import Uniform, dequantise_rows, quantise_rows
from medvfm_jax.federated.core.records import Codec

_FACTOR = 64  # H of 4096 is two products with H of 64: few large steps instead of twelve small ones
_LARGEST_BLOCK = 4096


def rotated(bits: int, largest_block: int = _LARGEST_BLOCK) -> Codec:
    """Rotate at random, then round to 2^b levels between minimum and maximum of each block.

    Unbiased with omega <= min(B / 2, 2 ln(2 B) + 2) / (2^b - 1)^2 for blocks of B, whatever the update (Suresh et
    al. 2017, section 3; the constant follows from the sub-Gaussian maximum of a rotated block): it hardly grows
    with the size, where without rotation it grows linearly.  One seed of 32 bits per update; per leaf
    b d' + 64 (number of blocks) bits, d' >= d the padded size.

    Args:
        bits: b of each entry.
        largest_block: largest block that is rotated at once, a power of two.

    Returns:
        The codec; its messages are decoded with the shapes of the update alone.

    References:
        Suresh et al. 2017, https://arxiv.org/abs/1611.00429
    """
    require(bits in range(1, 17), "rotated", "bits", bits, "an integer from 1 to 16")
    require_power_of_two("rotated", largest_block)

    def encode(shared: Array, private: Array, leaf: Array) -> Uniform:
        block = block_size(leaf.size, 64 / bits, 1, largest_block)
        return quantise_rows(private, rotate(shared, to_blocks(leaf, block)), bits)

    def decode(shared: Array, message: Uniform, like: Array) -> Array:
        return from_blocks(unrotate(shared, dequantise_rows(message)), like)

    return seeded(encode, decode)


def hadamard(x: Array) -> Array:
    """Orthonormal Walsh-Hadamard transform (its own inverse) of the last axis, a power of two n: O(64 n log64 n).

    Args:
        x: (..., n), n a power of two.

    Returns:
        (..., n), of the same l2 norm.
    """
    n = x.shape[-1]
    if n <= _FACTOR:
        return jnp.matmul(x, _matrix(n, x.dtype), precision=jax.lax.Precision.HIGHEST)
    grid = hadamard(x.reshape(*x.shape[:-1], n // _FACTOR, _FACTOR))
    return jnp.swapaxes(hadamard(jnp.swapaxes(grid, -1, -2)), -1, -2).reshape(x.shape)


def rotate(key: Array, blocks: Array, rounds: int = 1) -> Array:
    """Blocks (blocks, n) -> (H D_rounds) ... (H D_1) of each, with the same random signs D for every block."""
    for signs in _signs(key, rounds, blocks):
        blocks = hadamard(blocks * signs)
    return blocks


def unrotate(key: Array, blocks: Array, rounds: int = 1) -> Array:
    """The inverse of ``rotate`` for the same key."""
    for signs in _signs(key, rounds, blocks)[::-1]:
        blocks = hadamard(blocks) * signs
    return blocks


def to_blocks(leaf: Array, block: int) -> Array:
    """Leaf (...) of d entries -> (ceil(d / block), block), padded with zeros."""
    flat = leaf.ravel()
    return jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)


def from_blocks(blocks: Array, like: Array) -> Array:
    """The inverse of ``to_blocks``: (d,)."""
    return blocks.ravel()[: math.prod(like.shape)]


def block_size(size: int, overhead: float, smallest: int, largest: int) -> int:
    """The power of two B for which ceil(size / B) (B + overhead) is least: little padding, few scales."""
    candidates = [2**p for p in range(smallest.bit_length() - 1, largest.bit_length()) if 2**p < 2 * size]
    return min(candidates, key=lambda block: -(-size // block) * (block + overhead), default=smallest)


def require_power_of_two(codec: str, largest_block: int, smallest: int = 1) -> None:
    """Refuse a block that no Hadamard matrix of the recursion has."""
    fits = largest_block >= smallest and largest_block & (largest_block - 1) == 0
    require(fits, codec, "largest_block", largest_block, f"a power of two of at least {smallest}")


def _signs(key: Array, rounds: int, blocks: Array) -> Array:
    return jax.random.rademacher(key, (rounds, blocks.shape[-1]), blocks.dtype)


def _matrix(n: int, dtype: np.dtype) -> Array:
    parity = np.array([[(i & j).bit_count() % 2 for j in range(n)] for i in range(n)])
    return jnp.asarray((1 - 2 * parity) / math.sqrt(n), dtype)
