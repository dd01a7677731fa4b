"""Choice of cases: a closed form on a line, the covering radius, distinct rows, refusals."""

import numpy as np
import pytest

from medvfm_jax.data.selection import SELECTIONS, BadSelection, k_center, k_medoids


def test_farthest_points_of_a_line():
    line = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    assert k_center(line, 4) == [
        3,
        4,
        0,
        1,
    ]  # the mean is 3.2; then 10; then 0; 1 and 2 are equally far: the first
    assert [k_center(line, n) for n in (1, 2, 3)] == [[3], [3, 4], [3, 4, 0]]


def test_medoids_are_the_middles_of_clusters_the_largest_first():
    clusters = np.array([[0.0], [1.0], [2.0], [100.0], [104.0], [-2.5]])
    assert k_medoids(clusters, 2) == [0, 3]  # means 0.125 and 102, from which 100 and 104 are equally far


@pytest.mark.parametrize("name", SELECTIONS)
def test_all_rows_once_also_where_they_are_equal(name):
    assert sorted(SELECTIONS[name](np.ones((5, 3)), 5)) == [0, 1, 2, 3, 4]


def test_the_radius_is_at_most_twice_that_of_any_choice():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 2))

    def radius(chosen):
        return np.linalg.norm(vectors[:, None] - vectors[None, chosen], axis=-1).min(1).max()

    best = min(radius(list(rng.choice(30, 3, replace=False))) for _ in range(2000))
    assert radius(k_center(vectors, 3)) <= 2 * best


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize(
    ("vectors", "n", "words"),
    [
        (np.ones((2, 1)), 3, "3 cases"),
        (np.ones((2, 1)), 0, "0 cases"),
        (np.array([[np.nan]]), 1, "not finite"),
    ],
)
def test_what_cannot_be_chosen_is_refused(name, vectors, n, words):
    with pytest.raises(BadSelection, match=words):
        SELECTIONS[name](vectors, n)
