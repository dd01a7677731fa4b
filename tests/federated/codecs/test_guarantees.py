"""The same properties for every codec of the catalogue: unbiased or contracting, deterministic, exact on the wire."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.federated.codecs import (
    CODECS,
    bits,
    guarantee,
    make_codec,
    message_bits,
    message_shapes,
    pack,
    unpack,
)

DRAWS = 1024
OPTIONS: dict[str, dict[str, Any]] = {
    "top_k": {"fraction": 0.1},
    "rand_k": {"fraction": 0.25},
    "uniform": {"bits": 3},
    "qsgd": {"levels": 3},
    "powersgd": {"rank": 2},
    "count_sketch": {"rows": 3, "columns": 16},
    "rotated": {"bits": 2},
}
LIKE = {
    "bias": jax.ShapeDtypeStruct((5,), jnp.float32),
    "nothing": jax.ShapeDtypeStruct((2, 0), jnp.float32),
    "one": {"w": jax.ShapeDtypeStruct((8, 12), jnp.float32)},
    "scale": jax.ShapeDtypeStruct((), jnp.float32),
    "two": {"w": jax.ShapeDtypeStruct((8, 12), jnp.float32)},
}
SIZE = 5 + 1 + 2 * 96


def vectors() -> dict[str, np.ndarray]:
    """Updates as vectors: heavy-tailed ones, and those that are worst for some codec."""
    rng = np.random.default_rng(0)
    tails = rng.standard_t(3, SIZE)
    return {
        "tails": tails,
        "small": 1e-12 * tails,
        "large": 1e12 * tails,
        "equal magnitudes": rng.choice([-1.0, 1.0], SIZE),
        "constant": np.ones(SIZE),
        "one entry": np.eye(1, SIZE, 30)[0],
        "two entries": np.eye(1, SIZE, 30)[0] - 0.5 * np.eye(1, SIZE, 40)[0],
        "three quarters": 0.75 * np.eye(1, SIZE, 7)[0] + 1.5 * np.eye(1, SIZE, 130)[0],
        "zero": np.zeros(SIZE),
        "spike among noise": np.where(np.arange(SIZE) == 30, 1, 0.01 * rng.normal(size=SIZE)),
        "ties": rng.integers(-2, 3, SIZE) / 2,
    }


class Sample(NamedTuple):
    """x (V, SIZE), decoded (V, DRAWS, SIZE), messages with leading axes (V + 2, DRAWS)."""

    x: np.ndarray
    decoded: np.ndarray
    messages: Any
    spoilt: np.ndarray  # (2, DRAWS, SIZE), decoded from updates with a NaN and with an infinity


def unravel(x: jax.Array) -> Any:
    """(SIZE,) -> an update of the shapes LIKE."""
    leaves, structure = jax.tree.flatten(LIKE)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(jnp.split(x, ends), leaves)]
    )


def ravel(tree: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


@functools.cache
def sample(name: str) -> Sample:
    """Encode and decode each vector with many keys, the last of which repeats the first; one compilation."""
    codec = make_codec(name, **OPTIONS.get(name, {}))

    def once(x: jax.Array, key: jax.Array) -> tuple:
        update = unravel(x)
        message, _ = codec.encode(key, codec.init(update), update)
        return ravel(codec.decode(message, LIKE)), message

    keys = jax.random.split(jax.random.key(1), DRAWS)
    keys = keys.at[-1].set(keys[0])
    spoilt = np.where(np.arange(SIZE) == 50, [[np.nan], [np.inf]], 1)
    x = np.concatenate([np.stack(list(vectors().values())), spoilt]).astype(np.float32)
    decoded, messages = jax.jit(jax.vmap(jax.vmap(once, (None, 0)), (0, None)))(x, keys)
    decoded = np.asarray(decoded, np.float64)
    return Sample(x[:-2].astype(np.float64), decoded[:-2], jax.tree.map(np.asarray, messages), decoded[-2:])


def constants(name: str) -> Any:
    return guarantee(name, LIKE, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", [name for name in CODECS if constants(name).omega is not None])
def test_unbiased_codecs_have_the_right_mean(name: str) -> None:
    """A z-test for every coordinate, and one for all together, which sees biases of a few percent of a deviation.

    The single test allows 5.5 standard errors (chance 4e-8) and, as in Bernstein's inequality, a few draws of the
    largest error: of a rounding that goes up once in a thousand draws, the sample does not know the deviation.
    """
    x, decoded, *_ = sample(name)
    error = decoded - x[:, None]
    mean, deviation = np.abs(error.mean(axis=1)), error.std(axis=1)
    largest = np.abs(error).max(axis=(1, 2))[:, None]
    rounding = 1e-6 * np.linalg.norm(x, axis=1, keepdims=True)
    assert (mean <= 5.5 * deviation / np.sqrt(DRAWS) + 12 * largest / DRAWS + rounding).all()
    random = deviation > np.maximum(0.1 * largest, 100 * rounding)
    z = np.where(random, mean / np.where(random, deviation, 1) * np.sqrt(DRAWS), 0)
    many = random.sum(axis=1) > 90
    assert ((z**2).sum(axis=1)[many] < 1.4 * random.sum(axis=1)[many]).all()


@pytest.mark.parametrize("name", CODECS)
def test_the_stated_constant_bounds_the_error(name: str) -> None:
    """Mean |Q(x) - x|^2 <= omega |x|^2 or (1 - delta)|x|^2, up to 4 standard errors of that mean."""
    x, decoded, *_ = sample(name)
    omega, delta = constants(name)
    norm = (x**2).sum(axis=-1)

    def bounded(received: np.ndarray, factor: float) -> None:
        squares = ((received - x[:, None]) ** 2).sum(axis=-1)
        slack = 4 * squares.std(axis=1) / np.sqrt(DRAWS) + 1e-6 * norm
        assert (squares.mean(axis=1) <= factor * norm + slack).all(), squares.mean(axis=1) / norm

    if omega is None:
        bounded(decoded, 1 - delta)
    else:
        bounded(decoded, omega)
        bounded(decoded / (1 + omega), 1 - delta)
        assert delta == 1 / (1 + omega)


@pytest.mark.parametrize("name", CODECS)
def test_a_message_depends_on_nothing_but_key_and_update(name: str) -> None:
    _, decoded, messages, _ = sample(name)
    first, last = (jax.tree.map(lambda m, i=i: m[:, i], messages) for i in (0, -1))
    chex.assert_trees_all_equal(first, last)
    np.testing.assert_array_equal(decoded[:, 0], decoded[:, -1])


@pytest.mark.parametrize("name", CODECS)
def test_bytes_are_the_message_and_as_many_as_stated(name: str) -> None:
    """Static bits, bits of the real message and packed bytes agree; what is unpacked decodes to the same update."""
    codec = make_codec(name, **OPTIONS.get(name, {}))
    _, decoded, messages, _ = sample(name)
    shapes = message_shapes(codec, LIKE)
    decode = jax.jit(lambda message: ravel(codec.decode(message, LIKE)))
    for v, draw in ((0, 0), (3, 5), (6, 7), (8, 2)):
        message = jax.tree.map(lambda m, i=v, j=draw: m[i, j], messages)
        data = pack(message)
        assert message_bits(message) == bits(codec, LIKE)
        assert 0 <= 8 * len(data) - bits(codec, LIKE) < 8 * len(jax.tree.leaves(shapes))
        received = unpack(data, shapes)
        chex.assert_trees_all_equal(received, message, strict=True)
        np.testing.assert_allclose(
            decode(received), decoded[v, draw], rtol=1e-5, atol=1e-6 * np.abs(decoded[v]).max()
        )


@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_finite_stays_visible(name: str) -> None:
    """A diverged client must not look healthy after decoding; rand_k alone may not have looked at the entry."""
    spoilt = sample(name).spoilt
    assert spoilt.shape == (2, DRAWS, SIZE)
    assert name == "rand_k" or not np.isfinite(spoilt).all(axis=-1).any()
