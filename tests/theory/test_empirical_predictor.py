"""LEEP against its formula and its limits; clusters against a mixture that is known."""

import numpy as np
import pytest

from medvfm_jax.theory.empirical_predictor import cluster_probabilities, leep, n_leep

RNG = np.random.default_rng(0)
CLASSES = np.repeat([0, 1, 2], [20, 30, 50])
ENTROPY = -sum(p * np.log(p) for p in (0.2, 0.3, 0.5))


def test_leep_by_its_formula():
    given = RNG.dirichlet(np.ones(4), 100)
    joint = np.zeros((3, 4))
    for row, y in zip(given, CLASSES, strict=True):
        joint[y] += row / 100
    expected = np.mean(
        [np.log(sum(joint[y, z] / joint[:, z].sum() * row[z] for z in range(4)))
         for row, y in zip(given, CLASSES, strict=True)]
    )  # fmt: skip
    assert leep(given, CLASSES) == pytest.approx(expected, rel=1e-12)
    assert leep(np.c_[given, np.zeros(100)], CLASSES) == pytest.approx(expected, rel=1e-12), "never predicted"


def test_leep_lies_between_minus_the_entropy_of_the_classes_and_0():
    assert leep(np.full((100, 4), 0.25), CLASSES) == pytest.approx(-ENTROPY, rel=1e-12)
    assert leep(np.eye(5)[CLASSES + 2], CLASSES) == 0
    assert -ENTROPY <= leep(RNG.dirichlet(np.ones(4), 100), CLASSES) < 0


def test_clusters_that_lie_apart_are_found():
    centres = np.array([[0, 0], [40, 0], [0, 40]])
    x = centres[CLASSES] + RNG.normal(size=(100, 2))
    held = cluster_probabilities(x, 3)
    np.testing.assert_allclose(held.sum(1), 1, rtol=1e-12)
    assert all(len(set(held[k == CLASSES].argmax(1))) == 1 for k in range(3))
    assert len(set(held.argmax(1))) == 3
    np.testing.assert_array_equal(held, cluster_probabilities(x, 3))


def test_probabilities_are_those_of_gaussians_that_fit_best():
    """At the end means, variances and shares are those of what each cluster holds, and give what it holds."""
    x = np.concatenate([RNG.normal(0, 1, (300, 2)), RNG.normal(3, 2, (200, 2))])
    held = cluster_probabilities(x, 2)
    mass = held.sum(0)
    means = held.T @ x / mass[:, None]
    variances = np.stack([held[:, k] @ (x - means[k]) ** 2 / mass[k] for k in range(2)])
    density = np.stack(
        [mass[k] / 500 * np.prod(np.exp(-((x - means[k]) ** 2) / variances[k] / 2) / np.sqrt(variances[k]), 1)
         for k in range(2)], 1,
    )  # fmt: skip
    np.testing.assert_allclose(held, density / density.sum(1, keepdims=True), atol=0.02)


def test_n_leep_knows_which_features_tell_classes_apart():
    x = 6 * np.eye(8)[CLASSES] + RNG.normal(size=(100, 8))
    assert n_leep(x, CLASSES) > -0.1
    noise = n_leep(RNG.normal(size=(100, 8)), CLASSES)
    assert -ENTROPY <= noise < -0.7 * ENTROPY
    turned = x @ np.linalg.qr(RNG.normal(size=(8, 8)))[0] * 3 + 5
    assert n_leep(turned, CLASSES) > -0.1


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match="one class"):
        leep(np.full((4, 2), 0.5), np.zeros(4))
    with pytest.raises(ValueError, match="not probabilities"):
        leep(np.full((4, 2), 0.6), np.arange(4) % 2)
    with pytest.raises(ValueError, match="not probabilities"):
        leep(np.array([[1.5, -0.5]] * 4), np.arange(4) % 2)
    with pytest.raises(ValueError, match="the same for all"):
        n_leep(np.full((6, 2), 0.1), np.arange(6) % 2)
    with pytest.raises(ValueError, match="not finite"):
        n_leep(np.full((6, 2), np.nan), np.arange(6) % 2)
    with pytest.raises(ValueError, match="one class"):
        n_leep(RNG.normal(size=(5, 2)), np.zeros(5))
