"""Bits of a message against the formulas of the papers, for a vector of 1000 entries and for real shapes."""

import jax
import jax.numpy as jnp
import pytest

from medvfm_jax.federated.codecs import (
    InvalidCodec,
    bits,
    flattened,
    guarantee,
    make_codec,
    message_bits,
    top_k,
)

VECTOR = jax.ShapeDtypeStruct((1000,), jnp.float32)
LORA = {
    f"block{i}": {
        "a": jax.ShapeDtypeStruct((768, 4), jnp.float32),
        "b": jax.ShapeDtypeStruct((4, 2304), jnp.float32),
        "frozen": None,
    }
    for i in range(12)
}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("identity", {}, 32_000),
        ("top_k", {"fraction": 0.1}, 100 * (32 + 10)),
        ("rand_k", {"fraction": 0.1}, 100 * 32 + 32),
        ("int8", {}, 8 * 1000 + 64),
        ("int4", {}, 4 * 1000 + 64),
        ("uniform", {"bits": 3}, 3 * 1000 + 64),
        ("qsgd", {"levels": 1}, 32 + 1000 * (1 + 1)),
        ("qsgd", {"levels": 4}, 32 + 1000 * (1 + 3)),
        ("qsgd", {"levels": 16}, 32 + 1000 * (1 + 5)),
        ("natural", {}, 9 * 1000),
        ("scaled_sign", {}, 1000 + 32),
        ("powersgd", {}, 32_000),  # a vector is no matrix
        ("count_sketch", {"rows": 3, "columns": 20}, 32 * 60 + 32),
        ("count_sketch", {"rows": 3, "columns": 20, "seed": 5}, 32 * 60),
        ("rotated", {"bits": 4}, 4 * 1024 + 64 + 32),
        ("drive", {}, 1024 + 32 + 32),
        ("drive", {"largest_block": 64}, 1024 + 16 * 32 + 32),
    ],
)
def test_bits_of_a_vector(name: str, options: dict, expected: int) -> None:
    assert bits(make_codec(name, **options), VECTOR) == expected


def test_bits_of_lora_on_vit_b() -> None:
    a, b = 768 * 4, 4 * 2304
    assert bits(make_codec("identity"), LORA) == 12 * 32 * (a + b)
    assert bits(make_codec("int8"), LORA) == 12 * (8 * (a + b) + 2 * 64)
    assert bits(make_codec("top_k"), LORA) == 12 * (31 * (32 + 12) + 93 * (32 + 14))
    assert bits(flattened(top_k(0.01)), LORA) == 1475 * (32 + 18)  # of 147,456 entries in one vector
    assert bits(make_codec("drive"), LORA) == 32 + 12 * (
        a + 3 * 32 + b + 9 * 32
    )  # blocks of 1024: no padding
    assert bits(make_codec("powersgd", rank=1), LORA) == 12 * 32 * (768 + 4 + 4 + 2304)
    # At rank 4 the factors of a rank-4 adapter are no smaller than the adapter: it is sent as it is.
    assert bits(make_codec("powersgd", rank=4), LORA) == 12 * 32 * (a + b)


def test_bits_need_no_arrays_and_follow_the_message() -> None:
    update = {
        "w": jnp.arange(12.0).reshape(3, 4),
        "b": jnp.ones(3),
        "nothing": jnp.zeros((0, 2)),
        "one": jnp.ones(()),
    }
    codec = make_codec("top_k", fraction=0.3)
    message, _ = jax.jit(codec.encode)(jax.random.key(0), codec.init(update), update)
    assert bits(codec, update) == message_bits(message) == 4 * (32 + 4) + (32 + 2) + 0 + 32


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gzip", {}, "There is no codec 'gzip', known are identity, top_k,"),
        ("int8", {"bits": 4}, "codec int8 has no option 'bits', there are none"),
        ("top_k", {"k": 4}, "codec top_k has no option 'k', known are fraction"),
        ("top_k", {"fraction": 0.0}, "codec top_k: fraction is 0.0, expected 0 < fraction <= 1"),
        ("rand_k", {"fraction": 1.5}, "codec rand_k: fraction is 1.5"),
        ("uniform", {"bits": 0}, "codec uniform: bits is 0, expected an integer from 1 to 16"),
        ("rotated", {"bits": 17}, "codec rotated: bits is 17"),
        ("rotated", {"largest_block": 48}, "largest_block is 48, expected a power of two"),
        ("drive", {"largest_block": 32}, "largest_block is 32, expected a power of two of at least 64"),
        ("drive", {"rounds": 0}, "codec drive: rounds is 0"),
        ("qsgd", {"levels": 0}, "codec qsgd: levels is 0"),
        ("powersgd", {"rank": 0}, "codec powersgd: rank is 0"),
        ("count_sketch", {"rows": 2}, "codec count_sketch: rows is 2, expected an odd number"),
        ("count_sketch", {"columns": 0}, "codec count_sketch: columns is 0"),
    ],
)
def test_impossible_options_are_one_sentence(name: str, options: dict, sentence: str) -> None:
    with pytest.raises(InvalidCodec) as error:
        make_codec(name, **options)
    assert sentence in str(error.value)


def test_guarantee_is_that_of_the_worst_leaf() -> None:
    like = {"a": VECTOR, "b": jax.ShapeDtypeStruct((10,), jnp.float32)}
    assert guarantee("rand_k", like["b"], fraction=0.15).omega == 10 / 2 - 1
    assert guarantee("rand_k", like, fraction=0.15).omega == 1000 / 150 - 1
    assert guarantee("top_k", like, fraction=0.1) == (None, 0.1)
    assert guarantee("qsgd", like, levels=4).omega == pytest.approx(1000**0.5 / 4)
    assert guarantee("count_sketch", like, rows=1, columns=100).omega == 1009 / 100
    assert guarantee("int8", {}).omega == 0
