"""Weights as integers: how far they move, how they are stored, and what the adapter makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.adapters import BadAdapterConfig, NoSuchSite, from_config, to_config
from medvfm_jax.adapters.integer_weights import (
    integer_weights,
    largest,
    paired,
    quantised,
    restored,
    stored,
    unpaired,
)


def random_weights(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def back(w, bits, group=0, candidates=1):
    codes, scales = quantised(w, bits, group, candidates)
    return np.asarray(restored(w, stored("kernel", codes, scales, bits), "kernel", bits, group)), scales


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("shape", "group"), [((13, 5), 0), ((3, 3, 4, 6), 8), ((7, 2), 3), ((2, 2), 64)])
def test_no_weight_moves_by_more_than_half_a_step_and_the_largest_stays(bits, shape, group):
    w = random_weights(*shape)
    found, scales = back(w, bits, group)
    inputs = int(np.prod(shape[:-1]))
    steps = np.repeat(scales, min(group or inputs, inputs), 0)[:inputs].reshape(shape)
    assert np.all(np.abs(found - w) <= steps / 2 * (1 + 1e-5))
    top = np.abs(w.reshape(-1, shape[-1])).argmax(0)
    columns = np.arange(shape[-1])
    np.testing.assert_allclose(
        found.reshape(-1, shape[-1])[top, columns], w.reshape(-1, shape[-1])[top, columns], rtol=1e-6
    )


def test_each_bit_is_worth_six_decibels():
    w = np.random.default_rng(0).uniform(-1, 1, (20_000, 1)).astype(np.float32)
    w[0] = 1
    ratios = []
    for bits in range(3, 9):
        error = back(w, bits)[0] - w
        ratio = 10 * np.log10(np.mean(w**2) / np.mean(error**2))
        # A uniform signal of variance 1/3 and a uniform error of variance s^2 / 12 with s = 1 / (2^(b-1) - 1).
        assert ratio == pytest.approx(20 * np.log10(2 * largest(bits)), abs=0.15)
        ratios.append(ratio)
    assert ratios[-1] - ratios[-2] == pytest.approx(6.02, abs=0.2)


def test_a_search_is_never_worse_than_the_largest_weight_and_is_better_with_outliers():
    w = random_weights(64, 8)
    w[0] *= 6
    plain, searched = (np.square(back(w, 4, 0, n)[0] - w).sum(0) for n in (1, 20))
    assert np.all(searched <= plain)
    assert searched.sum() < 0.9 * plain.sum()


def test_zeros_stay_zeros_and_numpy_gives_what_jax_gives():
    w = random_weights(9, 4)
    w[:, 1] = 0
    assert not back(w, 4)[0][:, 1].any()
    codes, scales = quantised(w, 4, 4, 5)
    codes_jax, scales_jax = quantised(jnp.asarray(w), 4, 4, 5)
    np.testing.assert_array_equal(codes, codes_jax)
    np.testing.assert_allclose(scales, scales_jax, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 15])
def test_two_integers_share_a_byte(rows):
    codes = np.random.default_rng(rows).integers(-8, 8, (rows, 3)).astype(np.int8)
    for values in (codes, jnp.asarray(codes)):
        pairs = paired(values)
        assert pairs.dtype == np.uint8
        assert pairs.shape == (-(-rows // 2), 3)
        np.testing.assert_array_equal(unpaired(pairs, rows), codes)
    assert paired(np.array([[1], [-2]], np.int8)).item() == 1 | (14 << 4)


@pytest.mark.slow
def test_the_adapter_runs_the_rounded_model_without_its_own_weights():
    network, x = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)]), random_weights(2, 5)
    params = network.init(jax.random.key(0), x)
    adapter = from_config(to_config(integer_weights(".*/kernel", bits=4, group=2)))
    delta = adapter.init(jax.random.key(0), network.apply, params, x)
    shapes = jax.eval_shape(lambda p: adapter.init(jax.random.key(0), network.apply, p, x), params)
    assert jax.tree.map(jnp.shape, delta) == jax.tree.map(jnp.shape, shapes)
    assert delta["layers_0"]["kernel.codes"].dtype == jnp.uint8
    merged = adapter.merge(params, delta)
    own = np.asarray(params["params"]["layers_0"]["kernel"])
    np.testing.assert_allclose(merged["params"]["layers_0"]["kernel"], back(own, 4, 2)[0], atol=1e-6)
    empty = jax.tree.map(lambda leaf: leaf * jnp.nan if leaf.ndim == 2 else leaf, params)
    np.testing.assert_array_equal(adapter.wrap(network.apply)(empty, delta, x), network.apply(merged, x))


def test_what_is_not_its_own_is_refused():
    network, x = nn.Sequential([nn.Dense(6)]), random_weights(2, 5)
    params = network.init(jax.random.key(0), x)
    adapter = integer_weights(".*/kernel")
    delta = adapter.init(jax.random.key(0), network.apply, params, x)
    wider = nn.Sequential([nn.Dense(7)]).init(jax.random.key(0), x)
    with pytest.raises(NoSuchSite, match="another model"):
        adapter.merge(wider, delta)
    with pytest.raises(NoSuchSite, match="matches no parameter"):
        integer_weights("nothing").init(jax.random.key(0), network.apply, params, x)
    for options in ({"bits": 1}, {"bits": 9}, {"bits": 4.0}, {"group": -1}, {"candidates": 0}):
        with pytest.raises(BadAdapterConfig, match=next(iter(options))):
            integer_weights(".*", **options)
