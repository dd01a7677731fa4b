"""What single codecs do in closed form: exact variances, optima, linearity, orthonormality."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from medvfm_jax.federated.codecs import (
    count_sketch,
    drive,
    flattened,
    guarantee,
    hadamard,
    natural,
    powersgd,
    qsgd,
    rand_k,
    rotated,
    scaled,
    scaled_sign,
    seeded,
    top_k,
    uniform,
)
from medvfm_jax.federated.codecs.rotation import block_size, from_blocks, rotate, to_blocks, unrotate
from medvfm_jax.federated.core.records import Codec

D, DRAWS = 100, 4000
X = np.random.default_rng(2).standard_t(3, D).astype(np.float32)
NORM = float((X.astype(np.float64) ** 2).sum())


def squared_errors(codec: Codec, x: np.ndarray = X, draws: int = DRAWS) -> np.ndarray:
    """(draws, d): squared error of every coordinate of a vector."""

    def once(key: jax.Array) -> jax.Array:
        return codec.decode(codec.encode(key, codec.init(x), jnp.asarray(x))[0], x)

    decoded = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(0), draws))
    return (np.asarray(decoded, np.float64) - x) ** 2


def assert_mean(samples: np.ndarray, expected: float) -> None:
    """The mean lies within 4.5 standard errors of the closed form, and those are small enough to say something."""
    error = samples.std() / np.sqrt(len(samples))
    assert error < 0.05 * expected
    assert abs(samples.mean() - expected) < 4.5 * error


def test_top_k_error_is_the_tail_it_leaves_out() -> None:
    magnitudes = np.sort(np.abs(X.astype(np.float64)))
    np.testing.assert_allclose(
        squared_errors(top_k(0.1), draws=1).sum(), (magnitudes[:-10] ** 2).sum(), rtol=1e-6
    )


def test_rand_k_variance_is_exact() -> None:
    assert_mean(squared_errors(rand_k(0.1)).sum(axis=1), (100 / 10 - 1) * NORM)


def test_qsgd_variance_is_that_of_its_roundings() -> None:
    """sum over entries of (|x|/s)^2 f (1 - f), with f the fraction of the level; below the bound of the paper."""
    for s in (1, 4):
        level = s * np.abs(X.astype(np.float64)) / np.sqrt(NORM)
        f = level - np.floor(level)
        expected = NORM / s**2 * (f * (1 - f)).sum()
        assert_mean(squared_errors(qsgd(s)).sum(axis=1), expected)
        assert expected <= min(D / s**2, np.sqrt(D) / s) * NORM


def test_natural_variance_is_that_of_its_roundings() -> None:
    """sum of (2 a - |x|)(|x| - a) over entries, a the power of two below; 1/8 of x^2 at worst, for |x| = 4a/3."""
    magnitude = np.abs(X.astype(np.float64))
    below = 2.0 ** np.floor(np.log2(magnitude))
    expected = ((2 * below - magnitude) * (magnitude - below)).sum()
    assert_mean(squared_errors(natural()).sum(axis=1), expected)
    worst = np.full(D, 4 / 3, np.float32)
    assert_mean(squared_errors(natural(), worst).sum(axis=1), (worst.astype(np.float64) ** 2).sum() / 8)


def test_natural_sends_powers_of_two_and_zero_exactly() -> None:
    x = np.array([0.0, -1.0, 0.5, -(2.0**100), 2.0**-126, 3e38, -3.4e38], np.float32)
    errors = squared_errors(natural(), x, draws=20)
    np.testing.assert_array_equal(errors[:, :5], 0)
    np.testing.assert_allclose(np.sqrt(errors[0, 5:]), [3e38 - 2.0**127, 3.4e38 - 2.0**127], rtol=1e-6)


def test_uniform_levels_are_those_between_the_extremes() -> None:
    """b bits hit 2^b equidistant levels exactly; between them the variance is step^2 f (1 - f)."""
    levels = np.linspace(-3, 4.5, 16).astype(np.float32)
    np.testing.assert_allclose(squared_errors(uniform(4), levels, draws=5), 0, atol=1e-12)
    step = (float(X.max()) - float(X.min())) / 15
    position = (X.astype(np.float64) - X.min()) / step
    f = position - np.floor(position)
    assert_mean(squared_errors(uniform(4)).sum(axis=1), step**2 * (f * (1 - f)).sum())


def test_sixteen_bits_round_without_bias_within_a_level() -> None:
    """Entries a twentieth of a level above one: rounding to float32 first would lose them."""
    x = np.concatenate([[0, 65535], np.full(98, 60000.05)]).astype(np.float32)
    fraction = float(x[2]) - 60000
    up = squared_errors(uniform(16), x, draws=1000)[:, 2:] > 0.25
    assert abs(up.mean() - fraction) < 4.5 * np.sqrt(fraction / up.size)


def test_scaled_sign_error_is_exact() -> None:
    l1 = np.abs(X.astype(np.float64)).sum()
    np.testing.assert_allclose(squared_errors(scaled_sign(), draws=1).sum(), NORM - l1**2 / D, rtol=1e-6)


@pytest.mark.slow
def test_count_sketch_variance_of_every_entry_is_exact() -> None:
    errors = squared_errors(count_sketch(1, 7), draws=20_000)
    expected = (NORM - X.astype(np.float64) ** 2) / 7
    assert_mean(errors.sum(axis=1), (D - 1) * NORM / 7)
    z = (errors.mean(axis=0) - expected) / (errors.std(axis=0) / np.sqrt(len(errors)))
    assert np.abs(z).max() < 4.5
    median = squared_errors(count_sketch(5, 7)).sum(axis=1)
    assert median.mean() < 0.5 * (D - 1) * NORM / 7  # heavy tails: the median leaves out the rare collisions


def test_a_sketch_with_a_fixed_seed_is_linear() -> None:
    codec = count_sketch(3, 11, seed=4)
    updates = [
        {"a": jnp.asarray(X[:60]).reshape(6, 10), "b": jnp.asarray(X[60:])},
        {"a": jnp.ones((6, 10)), "b": X[:40]},
    ]
    encode = jax.jit(lambda key, update: codec.encode(key, (), update)[0])
    first, second = (encode(jax.random.key(i), update) for i, update in enumerate(updates))
    total = encode(jax.random.key(9), jax.tree.map(jnp.add, *updates))
    chex.assert_trees_all_close(jax.tree.map(jnp.add, first, second), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 32, 64, 128, 1024])
def test_hadamard_is_orthonormal_and_sylvesters(n: int) -> None:
    matrix = np.asarray(jax.jit(hadamard)(jnp.eye(n)))
    np.testing.assert_allclose(matrix, scipy.linalg.hadamard(n) / np.sqrt(n), atol=1e-6)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-5)


def test_rotation_has_an_inverse_and_keeps_lengths() -> None:
    key, x = jax.random.key(1), jnp.asarray(X)
    blocks = to_blocks(x, 32)
    turned = rotate(key, blocks, 2)
    assert blocks.shape == turned.shape == (4, 32)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=1), jnp.linalg.norm(blocks, axis=1), rtol=1e-5)
    np.testing.assert_allclose(from_blocks(unrotate(key, turned, 2), x), x, atol=1e-5)
    assert np.abs(turned - blocks).max() > 1


def test_blocks_waste_little() -> None:
    assert block_size(1000, 32, 64, 4096) == 1024
    assert block_size(5000, 32, 64, 4096) == 1024  # one of 4096 and a padded one would be 8192 entries
    assert block_size(2**20, 32, 64, 4096) == 4096
    assert block_size(3, 32, 64, 4096) == 64
    assert block_size(3, 32, 1, 4096) == 4
    assert block_size(1, 32, 1, 4096) == 1
    for size in range(1000, 50_000, 37):
        block = block_size(size, 32, 64, 4096)
        assert -(-size // block) * (block + 32) <= (1.4 if size < 10_000 else 1.12) * size


def test_rotation_saves_bits_where_one_entry_stands_out() -> None:
    """Uniform levels must span the outlier; after the rotation nothing stands out."""
    x = np.random.default_rng(5).normal(size=512).astype(np.float32)
    x[7] = 100.0
    plain, turned = (squared_errors(codec, x, 200).sum(axis=1).mean() for codec in (uniform(2), rotated(2)))
    assert turned < 0.1 * plain


def test_drive_is_exact_along_the_update_and_near_its_limits() -> None:
    """Exact along x: <decoded, x> = |x|^2 in every draw, error pi/2 - 1; least squares: error 1 - 2/pi."""
    x = np.random.default_rng(3).normal(size=1024).astype(np.float32)
    norm = float((x.astype(np.float64) ** 2).sum())
    codec = drive()

    def along(key: jax.Array) -> jax.Array:
        return jnp.vdot(codec.decode(codec.encode(key, (), jnp.asarray(x))[0], x), x)

    np.testing.assert_allclose(
        jax.jit(jax.vmap(along))(jax.random.split(jax.random.key(0), 20)), norm, rtol=1e-5
    )
    assert squared_errors(codec, x, 100).sum(axis=1).mean() / norm == pytest.approx(np.pi / 2 - 1, rel=0.03)
    assert squared_errors(drive(exact_along=False), x, 100).sum(axis=1).mean() / norm == pytest.approx(
        1 - 2 / np.pi, rel=0.03
    )


def test_drive_is_biased_and_says_so() -> None:
    """Small noise around a spike arrives larger than it is, whichever scale: no guarantee of being unbiased."""
    x = 0.01 * np.random.default_rng(0).normal(size=64).astype(np.float32)
    x[3] = 1.0
    codec = drive()
    decode = jax.jit(jax.vmap(lambda key: codec.decode(codec.encode(key, (), jnp.asarray(x))[0], x)))
    decoded = np.asarray(decode(jax.random.split(jax.random.key(0), 8192)), np.float64)
    noise = np.delete(np.arange(64), 3)
    slope = decoded[:, noise] @ x[noise] / (x[noise] @ x[noise])
    assert slope.mean() - 1 > 5 * slope.std() / np.sqrt(len(slope))
    for options in ({}, {"exact_along": False}, {"rounds": 9}):
        assert guarantee("drive", x, **options).omega is None
    assert guarantee("count_sketch", x).omega is not None
    assert guarantee("count_sketch", x, seed=3).omega is None  # the same collisions in every message


def test_powersgd_falls_to_the_optimum_with_its_warm_start() -> None:
    """For a fixed matrix the error decreases with every message, to the singular values beyond the rank."""
    rng = np.random.default_rng(4)
    m = rng.normal(size=(20, 12)) * 0.7 ** np.arange(12)
    singular = np.linalg.svd(m, compute_uv=False)
    optimum = (singular[3:] ** 2).sum() / (singular**2).sum()
    codec, update = powersgd(3), {"m": jnp.asarray(m.reshape(4, 5, 12), jnp.float32), "v": jnp.ones(4)}

    @jax.jit
    def messages(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def step(state: dict, key: jax.Array) -> tuple[dict, tuple]:
            message, state = codec.encode(key, state, update)
            decoded = codec.decode(message, update)
            error = ((decoded["m"] - update["m"]) ** 2).sum() / (update["m"] ** 2).sum()
            return state, (error, message["m"].left, decoded["v"])

        return jax.lax.scan(step, codec.init(update), jax.random.split(key, 25))[1]

    errors, left, vector = messages(jax.random.key(0))
    assert errors[0] > 1.05 * optimum
    assert (np.diff(errors) < 1e-6).all()
    assert errors[-1] == pytest.approx(optimum, rel=1e-4)
    np.testing.assert_allclose(
        np.einsum("tnr,tns->trs", left, left), np.broadcast_to(np.eye(3), (25, 3, 3)), atol=1e-5
    )
    np.testing.assert_array_equal(vector, 1)


def test_powersgd_recovers_after_a_leaf_that_did_not_move() -> None:
    """A zero update makes Q zero; the next update, with other rows than any standard basis starts from, must arrive."""
    codec = powersgd(2)
    low_rank = jnp.zeros((9, 8)).at[6:].set(jnp.outer(jnp.arange(1.0, 4), jnp.ones(8)))
    encode = jax.jit(codec.encode)
    _, state = encode(jax.random.key(0), codec.init(low_rank), jnp.zeros((9, 8)))
    np.testing.assert_array_equal(state, 0)
    message, _ = encode(jax.random.key(1), state, low_rank)
    np.testing.assert_allclose(codec.decode(message, low_rank), low_rank, atol=1e-5)


def test_flattened_sees_the_whole_update() -> None:
    """Top-k over all leaves keeps the largest entries wherever they are; leafwise it keeps some of every leaf."""
    update = {"large": jnp.arange(10.0, 20.0), "small": jnp.linspace(0.1, 1.0, 10).reshape(2, 5)}
    received = {}
    for name, codec in {"whole": flattened(top_k(0.5)), "each": top_k(0.5)}.items():
        roundtrip = jax.jit(lambda u, codec=codec: codec.decode(codec.encode(jax.random.key(0), (), u)[0], u))
        received[name] = roundtrip(update)
    chex.assert_trees_all_equal(received["whole"], {"large": update["large"], "small": jnp.zeros((2, 5))})
    assert [int((x != 0).sum()) for x in jax.tree.leaves(received["each"])] == [5, 5]


def test_leaves_of_equal_shape_have_their_own_randomness() -> None:
    """They share one vmapped call, not one key; and leaves whose messages alone are alike are kept apart."""
    update = {"a": jnp.ones(20), "b": jnp.ones(20), "c": jnp.ones(19)}
    codec = rand_k(0.2)
    received = jax.jit(lambda u: codec.decode(codec.encode(jax.random.key(0), (), u)[0], u))(update)
    assert [int((x != 0).sum()) for x in received.values()] == [4, 4, 4]
    assert not np.array_equal(received["a"], received["b"])
    np.testing.assert_allclose([x.max() for x in received.values()], [5, 5, 19 / 4])


def test_scaled_multiplies_what_is_decoded() -> None:
    codec, key = uniform(4), jax.random.key(1)
    whole = codec.decode(codec.encode(key, codec.init(X), jnp.asarray(X))[0], X)
    half = scaled(codec, 0.5)
    np.testing.assert_array_equal(
        half.decode(half.encode(key, half.init(X), jnp.asarray(X))[0], X), 0.5 * whole
    )


@pytest.mark.parametrize("seed", [None, 3])
def test_seeded_gives_both_sides_the_same_choices(seed: int | None) -> None:
    """The receiver takes off what the sender added, from a seed in the message or one that all know."""
    codec = seeded(
        lambda shared, private, leaf: leaf + jax.random.normal(shared, leaf.shape),
        lambda shared, message, like: message - jax.random.normal(shared, like.shape),
        seed,
    )
    first, second = (codec.encode(jax.random.key(k), (), jnp.asarray(X))[0] for k in (0, 1))
    np.testing.assert_allclose(codec.decode(first, X), X, atol=1e-5)
    assert (seed is None) != bool((jax.tree.leaves(first)[-1] == jax.tree.leaves(second)[-1]).all())
