"""Products of gradients, look-ahead and groups, where the answer is known."""

import numpy as np
import pytest

from medvfm_jax.crosstask import task_affinity as affinity
from medvfm_jax.crosstask.task_affinity import UndefinedAffinity


@pytest.fixture
def gradients():
    return np.random.default_rng(0).normal(size=(4, 7))


def test_ratios_are_those_of_the_vectors(gradients):
    gram = gradients @ gradients.T
    lengths = np.linalg.norm(gradients, axis=1)
    np.testing.assert_allclose(affinity.cosines(gram), gram / np.outer(lengths, lengths), rtol=1e-13)
    diversity = (lengths**2).sum() / np.linalg.norm(gradients.sum(0)) ** 2
    np.testing.assert_allclose(affinity.gradient_diversity(gram), diversity, rtol=1e-13)
    spread = (lengths**2).mean() / np.linalg.norm(gradients.mean(0)) ** 2
    np.testing.assert_allclose(affinity.dissimilarity(gram), spread, rtol=1e-13)
    assert affinity.gradient_diversity(np.ones((5, 5))) == pytest.approx(1 / 5)
    assert affinity.gradient_diversity(np.eye(5)) == 1
    assert affinity.dissimilarity(np.array([[1.0, -1], [-1, 1]])) == np.inf


def test_lookahead_of_quadratics_is_the_closed_form():
    """L_j = |x - b_j|^2 / 2 + 1 at 0: after x = eta b_i, L_j = |eta b_i - b_j|^2 / 2 + 1."""
    b, eta = np.random.default_rng(1).normal(size=(3, 4)), 0.3
    before = (b**2).sum(1) / 2 + 1
    after = np.array([[((eta * x - y) ** 2).sum() / 2 + 1 for y in b] for x in b])
    expected = (eta * b @ b.T - eta**2 * (b**2).sum(1)[:, None] / 2) / before
    np.testing.assert_allclose(affinity.lookahead_affinity(before, after), expected, rtol=1e-12)


def two_clusters(order):
    """Six tasks whose targets lie around two opposite points."""
    rng = np.random.default_rng(2)
    centre = np.array([1.0, 2.0, -1.0, 0.5])
    return np.array([centre if one < 3 else -centre for one in order]) + 0.2 * rng.normal(size=(6, 4))


@pytest.mark.parametrize("order", [range(6), [0, 3, 1, 4, 2, 5]])
def test_two_clusters_are_found_exactly(order):
    b, eta = two_clusters(order), 0.1
    before = (b**2).sum(1) / 2 + 1
    after = np.array([[((eta * x - y) ** 2).sum() / 2 + 1 for y in b] for x in b])
    expected = sorted(
        sorted(i for i, one in enumerate(order) if (one < 3) == which) for which in (True, False)
    )
    assert affinity.clusters(affinity.cosines(b @ b.T)) == expected
    assert affinity.best_groups(affinity.lookahead_affinity(before, after), most=2) == expected


def test_groups_by_affinity():
    ones = np.ones((4, 4))
    assert affinity.best_groups(ones) == [[0, 1, 2, 3]]
    assert affinity.best_groups(-ones) == [[0], [1], [2], [3]]
    assert affinity.best_groups(-ones, most=1) == [[0, 1, 2, 3]]
    one_way = np.array([[0, 3.0, -1], [-1, 0, -1], [-1, -1, 0]])  # what 1 gains is more than 0 loses
    assert affinity.best_groups(one_way) == [[0, 1], [2]]


def test_clusters_are_joined_by_chains():
    chain = np.array([[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]])
    assert affinity.clusters(chain) == [[0, 1, 2]]
    assert affinity.clusters(chain, 0.6) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affinity.cosines(np.ones((1, 1))), "one task, and none to compare"),
        (lambda: affinity.cosines(np.diag([1.0, 0.0])), "task 1 is zero"),
        (lambda: affinity.gradient_diversity(np.zeros((2, 2))), "All gradients are zero"),
        (lambda: affinity.dissimilarity(np.full((2, 2), np.nan)), "not finite"),
        (lambda: affinity.lookahead_affinity(np.zeros(2), np.ones((2, 2))), "not a positive number"),
        (lambda: affinity.best_groups(np.zeros((11, 11))), "at most 10"),
    ],
)
def test_what_is_undefined_is_said(call, message):
    with pytest.raises(UndefinedAffinity, match=message):
        call()
