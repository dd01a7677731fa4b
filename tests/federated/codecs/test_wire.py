"""Packing: layout bit by bit, round trips of any width, and refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvfm_jax.federated.codecs import Codes, Known, WireError, message_bits, pack, unpack
from medvfm_jax.federated.codecs.wire import code_dtype, index_width


def codes(values: list[int] | np.ndarray, width: int) -> Codes:
    return Codes(np.asarray(values, code_dtype(width)), width)


def test_four_bits_are_nibbles_and_one_bit_is_packbits() -> None:
    rng = np.random.default_rng(0)
    nibbles, signs = rng.integers(0, 16, 10), rng.integers(0, 2, 13)
    assert pack(codes(nibbles, 4)) == bytes(
        [16 * high + low for high, low in zip(nibbles[0::2], nibbles[1::2])]
    )
    assert pack(codes(signs, 1)) == np.packbits(signs.astype(np.uint8)).tobytes()
    assert pack(codes([3, 255, 0], 8)) == bytes([3, 255, 0])
    assert pack(codes([0b101, 0b010, 0b111], 3)) == bytes([0b10101011, 0b10000000])


def test_floats_are_little_endian_and_nothing_is_lost() -> None:
    special = np.array([-0.0, np.nan, np.inf, 1e-45, 3.0], np.float32)
    assert pack(special[-1:]) == bytes([0, 0, 0x40, 0x40])
    assert unpack(pack(special), special).tobytes() == special.tobytes()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 32), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_any_width_and_length_returns(width: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**width, count)
    message = {"codes": codes(values, width), "scale": np.float32(seed), "none": None}
    data = pack(message)
    assert message_bits(message) == count * width + 32
    assert len(data) == -(-count * width // 8) + 4
    chex.assert_trees_all_equal(unpack(data, message), message, strict=True)


def test_long_codes_cross_the_chunks() -> None:
    message = codes(np.random.default_rng(1).integers(0, 2**11, (3, 50_001)), 11)
    received = unpack(pack(message), jax.eval_shape(lambda: jax.tree.map(jnp.asarray, message)))
    assert len(pack(message)) == -(-3 * 50_001 * 11 // 8)
    np.testing.assert_array_equal(received.values, message.values)


def test_known_parts_cost_nothing_and_come_from_the_receiver() -> None:
    message = (Known({"h": np.ones(3, np.float32)}), codes([1, 0], 1))
    assert message_bits(message) == 2
    assert len(pack(message)) == 1
    mine = {"h": np.full(3, 7, np.float32)}
    received = unpack(pack(message), message, known=[mine])
    assert received[0].values is mine
    np.testing.assert_array_equal(received[1].values, [1, 0])
    with pytest.raises(WireError, match="1 known values, 0 were given"):
        unpack(pack(message), message)


def test_what_does_not_fit_is_refused() -> None:
    message = codes([1, 2, 3], 2)
    for data in (b"", b"ab"):
        with pytest.raises(WireError, match=f"{len(data)} bytes was received where 1 bytes"):
            unpack(data, message)
    with pytest.raises(WireError, match="a code is 4, which does not fit in 2 bits"):
        pack(codes([1, 4], 2))
    with pytest.raises(WireError, match="does not fit in 0 bits"):
        pack(codes([1], 0))


def test_index_width_is_the_rounded_up_logarithm() -> None:
    sizes = np.arange(1, 2000)
    np.testing.assert_array_equal([index_width(int(d)) for d in sizes], np.ceil(np.log2(sizes)))
    assert [index_width(2**20), index_width(2**20 + 1)] == [20, 21]
