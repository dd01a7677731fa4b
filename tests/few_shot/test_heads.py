"""Heads in closed form, and that many learned at once are those learned one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.few_shot.curve import Supports, fit_all, seeds_at_once
from medvfm_jax.few_shot.heads import (
    Head,
    Standard,
    _around,
    fit_head,
    head_logits,
    new_weights,
    standard_of,
    support_loss,
)
from medvfm_jax.few_shot.learners import head_learner, prototype_learner
from medvfm_jax.settings import FewShotConfig

PLAIN = Standard(jnp.zeros(2), jnp.ones(2))


def support(seed=0, n=3, side=4, c=5):
    features = jax.random.normal(jax.random.key(seed), (n, side, side, c)) + 3.0
    shares = jax.nn.softmax(3 * jax.random.normal(jax.random.key(seed + 1), (n, 2, side, side)), axis=1)
    return features, shares


def test_features_are_measured_over_labelled_places():
    features = jnp.array([[[[1.0], [5.0], [100.0]]]])
    shares = jnp.array([[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]])
    mean, deviation = standard_of(features, shares)
    np.testing.assert_allclose([mean[0], deviation[0]], [3, 2], rtol=1e-6)
    mean, deviation = standard_of(features, jnp.zeros_like(shares))
    np.testing.assert_allclose([mean[0], deviation[0]], [0, 1])


def test_a_linear_head_is_an_affine_map_of_standardised_features():
    weights = {"kernel": jnp.array([[1.0, 0.0], [0.0, 3.0]]), "bias": jnp.array([0.5, -1.0])}
    head = Head(Standard(jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0])), weights)
    logits = head_logits(head, jnp.array([[[5.0, 10.0], [1.0, 2.0]]]))
    np.testing.assert_allclose(logits, [[[2 + 0.5, 0.5]], [[3 * 2 - 1, -1]]], rtol=1e-6)


@pytest.mark.slow
def test_a_spatial_head_adds_what_its_neighbours_say():
    # One channel into a hidden one that is the sum of a place and its eight neighbours.
    weights = {
        "kernel": jnp.array([[1.0, 0.0]]),
        "bias": jnp.zeros(2),
        "down": jnp.array([[1.0]]),
        "middle": jnp.ones((3, 3, 1, 1)),
        "up": jnp.array([[10.0]]),
    }
    head = Head(Standard(jnp.zeros(1), jnp.ones(1)), weights)
    features = jnp.zeros((3, 3, 1)).at[0, 0].set(1.0)
    near = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(head_logits(head, features)[0], 10 * near + np.asarray(features)[..., 0])
    np.testing.assert_allclose(head_logits(head, -features)[0], -np.asarray(features)[..., 0])  # relu
    np.testing.assert_allclose(head_logits(head, features[None])[0], head_logits(head, features))


def test_neighbours_are_those_of_a_convolution():
    x, kernel = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 5, 4, 3), (3, 3, 3, 3)])
    )
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(_around(x, kernel), expected, atol=1e-5)


def test_an_untrained_head_is_undecided():
    for kind in ("linear", "spatial"):
        head = Head(PLAIN, new_weights(jax.random.key(0), kind, 2, 3))
        np.testing.assert_array_equal(head_logits(head, jnp.ones((4, 4, 2))), 0)


def test_the_loss_of_an_undecided_head_in_closed_form():
    # Cross-entropy log 2; Dice of 16 places, half of each class, at probability 1/2: overlap 8 * 1/2.
    shares = jnp.zeros((1, 2, 4, 4)).at[0, 0, :2].set(1).at[0, 1, 2:].set(1)
    head = Head(PLAIN, new_weights(jax.random.key(0), "linear", 2, 2))
    dice = 1 - (2 * 4 + 1) / (8 + 8 + 1)
    loss = support_loss(head, jnp.ones((1, 4, 4, 2)), shares, jnp.ones(1))
    np.testing.assert_allclose(loss, np.log(2) + dice, rtol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "spatial"])
def test_a_trained_head_tells_two_colours_apart(kind):
    shares = jnp.zeros((2, 2, 4, 4)).at[:, 0, :2].set(1).at[:, 1, 2:].set(1)
    features = 7 + 0.01 * jnp.stack([shares[:, 1], shares[:, 0] - shares[:, 1]], -1)
    head = fit_head(features, shares, jnp.ones(2), jax.random.key(0), kind=kind, steps=30, learning_rate=0.1)
    np.testing.assert_array_equal(head_logits(head, features).argmax(1), shares.argmax(1))
    np.testing.assert_allclose(head.standard.mean, features.mean((0, 1, 2)), rtol=1e-5)


def learners():
    config, alike = FewShotConfig("data", method="linear", steps=3), FewShotConfig("data")
    return {
        "linear": head_learner(config, "linear"),
        "spatial": head_learner(config, "spatial"),
        "prototype": prototype_learner(alike),
        "prototypes": prototype_learner(replace(alike, prototypes=2)),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("linear", "spatial"))) for n in learners()]
)
def test_all_seeds_and_sizes_at_once_are_those_one_by_one(name):
    learner = learners()[name]
    parts = [support(seed) for seed in (0, 10)]
    features, shares = (np.stack(part) for part in zip(*parts, strict=True))
    features[1, 2], shares[1, 2] = 0, 0  # the second seed has two pictures; the third is padding
    counts = [[1, 3], [1, 2]]
    present = np.array([[np.arange(3) < n for n in row] for row in counts], np.float32)
    keys = jax.vmap(jax.random.key)(np.arange(2))
    together = fit_all(learner, Supports(features, shares, present), keys)
    query = jax.random.normal(jax.random.key(99), (5, 5, 5)) + 3.0
    fit = jax.jit(learner.fit)
    for (s, z), n in np.ndenumerate(counts):
        alone = fit(features[s, :n], shares[s, :n], jnp.ones(n), keys[s])
        one = jax.tree.map(lambda leaf, at=(s, z): leaf[at], together)
        np.testing.assert_allclose(
            learner.logits(one, query), learner.logits(alone, query), rtol=2e-3, atol=2e-3
        )
    assert not np.allclose(
        *(learner.logits(jax.tree.map(lambda leaf, z=z: leaf[0, z], together), query) for z in (0, 1))
    )


def test_seeds_learn_together_while_their_features_fit():
    supports = Supports(np.zeros((3, 2, 4, 4, 8), np.float32), None, np.ones((3, 5, 2), np.float32))
    of_one = 2 * 4 * 4 * 8 * 4 * 5
    assert [seeds_at_once(supports, limit) for limit in (1, of_one, 2 * of_one, 10**9)] == [1, 1, 2, 3]
