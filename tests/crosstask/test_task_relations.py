"""How tasks are related: the minimiser it is, and its limits."""

import jax
import numpy as np
import pytest
import scipy.linalg

from medvfm_jax.crosstask import task_covariance, task_precision


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_the_covariance_is_the_square_root_over_its_trace():
    w = np.random.default_rng(0).normal(size=(6, 4))
    root = scipy.linalg.sqrtm(w.T @ w).real
    np.testing.assert_allclose(task_covariance(w.T @ w), root / np.trace(root), rtol=1e-8, atol=1e-10)


def test_no_other_matrix_of_trace_one_has_a_smaller_penalty():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(5, 3))
    best = np.asarray(task_covariance(w.T @ w))

    def penalty(omega):
        return np.trace(w @ np.linalg.inv(omega) @ w.T)

    for _ in range(20):
        other = rng.normal(size=(3, 3))
        other = other @ other.T + 0.1 * np.eye(3)
        mixed = 0.9 * best + 0.1 * other / np.trace(other)
        assert penalty(mixed) > penalty(best)


def test_nothing_learnt_is_unrelated():
    np.testing.assert_allclose(task_covariance(np.zeros((3, 3))), np.eye(3) / 3)
    np.testing.assert_allclose(task_precision(np.eye(3) / 3, 0.1), np.eye(3), atol=1e-12)


def test_tasks_that_agree_pull_each_other_and_those_that_do_not_push():
    alike = np.array([[1.0, 0.9], [0.9, 1.0]])
    assert task_precision(task_covariance(alike), 0.1)[0, 1] < 0  # minus times the other's: a pull towards it
    against = np.array([[1.0, -0.9], [-0.9, 1.0]])
    assert task_precision(task_covariance(against), 0.1)[0, 1] > 0
    equal = task_covariance(np.ones((2, 2)))
    assert np.abs(task_precision(equal, 0.25)).max() <= 1 / 0.25
    np.testing.assert_allclose(task_precision(equal, 1.0), np.eye(2), atol=1e-12)
