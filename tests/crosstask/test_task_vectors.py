"""One vector for many tasks, by hand and as properties."""

import jax
import numpy as np
import pytest

from medvfm_jax.crosstask import of_task, unify


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_signs_are_those_of_the_sum_and_magnitudes_the_largest_of_those_that_agree():
    vectors = np.array([[3.0, -1.0, 2.0, 0.0], [1.0, 4.0, -5.0, 0.0], [-2.0, 2.0, -1.0, 0.5]])
    found = unify(vectors, np.ones(3, bool))
    np.testing.assert_array_equal(found.vector, [3.0, 4.0, -5.0, 0.5])
    np.testing.assert_array_equal(
        found.masks, [[True, False, False, False], [True, True, True, False], [False, True, True, True]]
    )
    np.testing.assert_allclose(found.scales, [6 / 3, 10 / 12, 5.5 / 9.5], rtol=1e-12)
    np.testing.assert_allclose(of_task(found, 0), [6.0, 0, 0, 0], rtol=1e-12)


def test_a_task_alone_gets_back_what_it_sent():
    vector = np.random.default_rng(0).normal(size=(1, 7))
    np.testing.assert_allclose(of_task(unify(vector, np.ones(1, bool)), 0), vector[0], rtol=1e-12)


def test_the_mean_magnitude_of_each_task_is_kept():
    vectors = np.random.default_rng(1).normal(size=(4, 30))
    found = unify(vectors, np.ones(4, bool))
    for i in range(4):
        assert np.abs(of_task(found, i)).sum() == pytest.approx(np.abs(vectors[i]).sum(), rel=1e-12)


@pytest.mark.slow
def test_unknown_tasks_count_nothing():
    vectors = np.random.default_rng(2).normal(size=(3, 9))
    known = np.array([True, False, True])
    found, alone = unify(vectors, known), unify(vectors[known], np.ones(2, bool))
    np.testing.assert_array_equal(found.vector, alone.vector)
    assert not found.masks[1].any()
    assert found.scales[1] == 0
    assert np.isfinite(unify(np.zeros((2, 3)), np.zeros(2, bool)).scales).all()
