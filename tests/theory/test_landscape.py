"""Planes through losses with a known shape, and directions whose filters are as long as the model's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.theory.landscape import NoLandscape, filter_directions, landscape

RNG = np.random.default_rng(0)
PLACES = np.array([-1.5, -0.5, 0.0, 0.5, 1.0])


def test_a_quadratic_loss_is_its_quadratic_surface():
    with jax.enable_x64(True):
        matrices = RNG.normal(size=(3, 6, 6))
        matrices = matrices + matrices.transpose(0, 2, 1)
        slopes, centre, first, second = (RNG.normal(size=shape) for shape in ((3, 6), 6, 6, 6))

        def losses(x):
            return np.array([0.5 * x @ m @ x + g @ x for m, g in zip(matrices, slopes)])

        found = landscape(losses, centre, first, second, PLACES)
    a, b = np.meshgrid(PLACES, PLACES, indexing="ij")
    m, g = matrices.mean(0), slopes.mean(0)
    slope = m @ centre + g
    want = losses(centre).mean() + a * (slope @ first) + b * (slope @ second)
    want += 0.5 * (a**2 * (first @ m @ first) + b**2 * (second @ m @ second)) + a * b * (first @ m @ second)
    np.testing.assert_allclose(found.losses, want, rtol=1e-10, atol=1e-10)
    assert found.curvature == pytest.approx((first @ m @ first, second @ m @ second), rel=1e-9)
    assert found.errors[2, 2] == 0
    there = centre - 1.5 * first + second
    rise = losses(there) - losses(centre)
    assert found.errors[0, 4] == pytest.approx(rise.std(ddof=1) / 3**0.5)
    low = np.unravel_index(want.argmin(), want.shape)
    assert found.lowest == pytest.approx((PLACES[low[0]], PLACES[low[1]], want.min()))


def test_filters_of_directions_are_as_long_as_the_models():
    centre = {
        "m": {"a": jnp.array(RNG.normal(size=(5, 3)) * [1, 10, 0]), "bias": jnp.arange(4.0)},
        "n": {"conv": jnp.array(RNG.normal(size=(2, 3, 3, 7))), "zero": jnp.zeros((2, 2))},
    }
    one, other = filter_directions(jax.random.key(0), centre)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, centre)
    for found in (one, other):
        for part, name, axes in (
            ("m", "a", 0),
            ("m", "bias", None),
            ("n", "conv", (0, 1, 2)),
            ("n", "zero", 0),
        ):
            lengths = [np.sqrt(np.square(tree[part][name]).sum(axes)) for tree in (found, centre)]
            np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert jnp.abs(one["m"]["a"] - other["m"]["a"]).max() > 0.1


def test_what_says_nothing_is_refused():
    with pytest.raises(NoLandscape, match="All that is trained is 0"):
        filter_directions(jax.random.key(0), {"a": jnp.zeros(3)})
    for places in ([0.0], [-1.0, 1.0], [-1.0, 0.5, 1.0], [1.0, 0.0, -1.0]):
        with pytest.raises(NoLandscape, match="odd number of places"):
            landscape(lambda x: np.ones(2), 0.0, 1.0, 1.0, places)
    with pytest.raises(NoLandscape, match="diverged"):
        landscape(lambda x: np.array([np.nan]), 0.0, 1.0, 1.0, PLACES)
    around = landscape(lambda x: np.array([1.0 if abs(x) < 1 else np.inf]), 0.0, 1.0, 1.0, PLACES)
    assert around.errors is None
    assert around.lowest[2] == 1
