"""Probes of features that were not learned from."""

import numpy as np
import pytest

from medvfm_jax.theory.probes import held_out_accuracy, neighbour_predictions, ridge_predictions

RNG = np.random.default_rng(0)


def leave_one_out(x, targets, penalty):
    """Squared errors of ridge regressions of the standardised features on all examples but one."""
    n, total = len(x), 0
    hat = np.full((n, n), 1 / n) + x @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T)
    total = np.sum(((targets - hat @ targets) / (1 - np.trace(hat) / n)) ** 2)
    return total


def test_the_penalty_has_the_least_generalised_cross_validation():
    x, classes = RNG.standard_normal((40, 30)), RNG.integers(0, 3, 40)
    x[:, 0] += 3 * classes
    standard = (x - x.mean(0)) / x.std(0)
    targets = np.eye(3)[classes]
    penalty = min((40 * 10.0**p for p in range(-4, 4)), key=lambda one: leave_one_out(standard, targets, one))
    weights = np.linalg.solve(standard.T @ standard + penalty * np.eye(30), standard.T @ targets)
    asked = RNG.standard_normal((25, 30)) * 2
    scores = (asked - x.mean(0)) / x.std(0) @ weights + targets.mean(0)
    assert (ridge_predictions(x, classes, asked) == scores.argmax(1)).all()


@pytest.mark.parametrize("predict", [ridge_predictions, neighbour_predictions])
def test_classes_that_lie_apart_are_told(predict):
    classes = np.repeat([2, 7], 30)
    x = np.stack([classes + RNG.normal(0, 0.1, 60), RNG.normal(0, 1, 60), np.ones(60)], 1)
    assert (predict(x[::2], classes[::2], x[1::2]) == classes[1::2]).mean() > 0.9


def test_the_nearest_neighbour_is_that_of_standardised_features():
    x, asked = RNG.standard_normal((20, 3)) * [1, 10, 100], RNG.standard_normal((9, 3)) * [1, 10, 100]
    distances = np.linalg.norm((asked[:, None] - x) / x.std(0), axis=-1)
    assert (neighbour_predictions(x, np.arange(20), asked) == distances.argmin(1)).all()


def test_no_group_is_answered_by_what_was_learned_from_it():
    groups = np.repeat(np.arange(6), 4)
    seen = []

    def predict(x, classes, asked):
        seen.append((set(x[:, 0]), set(asked[:, 0])))
        return np.zeros(len(asked))

    classes = np.arange(24) % 4 == 0
    found = held_out_accuracy(predict, groups[:, None], classes, groups, 3)
    assert seen == [({1, 2, 4, 5}, {0, 3}), ({0, 2, 3, 5}, {1, 4}), ({0, 1, 3, 4}, {2, 5})]
    assert found == pytest.approx([0.75] * 6)
