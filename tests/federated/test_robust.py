"""Robust rules: exact on small examples, deaf to a fifth of bad clients, blind to absent ones."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated.algorithms import fedavg, feddf, fednova
from medvfm_jax.federated.errors import BadFederation
from medvfm_jax.federated.robust import (
    coordinate_median,
    geometric_median,
    krum,
    krum_scores,
    multi_krum,
    robust,
    trimmed_mean,
)
from tests.federated.quadratics import cohort, loss, run, shard

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
POINTS, ALL = RNG.normal(size=(7, 3)), np.ones(7, bool)
RULES = {
    "median": coordinate_median,
    "trimmed": trimmed_mean(0.2),
    "krum": krum(4),
    "multi_krum": multi_krum(4, 8),
    "rfa": geometric_median(),
}


def apply(rule: Callable, points: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    present = np.ones(len(points), bool) if present is None else present
    return np.asarray(rule(jnp.asarray(points), jnp.asarray(present, float), jnp.asarray(present)))


@pytest.mark.parametrize("rule", RULES)
def test_four_of_twenty_bad_clients_stay_without_effect(rule: str) -> None:
    points = RNG.normal(size=(20, 3))
    points[:4] = 1e6
    assert np.abs(apply(RULES[rule], points)).max() < 3
    assert np.abs(points.mean(0)).min() > 1e5


@pytest.mark.parametrize("rule", RULES)
def test_absent_clients_do_not_exist(rule: str) -> None:
    points = RNG.normal(size=(16, 3))
    present = np.arange(16) % 5 != 1
    points[~present] = 77.0
    np.testing.assert_allclose(
        apply(RULES[rule], points, present), apply(RULES[rule], points[present]), rtol=1e-12
    )


def test_median_and_trimmed_mean_are_what_numpy_says() -> None:
    for m in (6, 7):
        np.testing.assert_allclose(apply(coordinate_median, POINTS[:m]), np.median(POINTS[:m], 0), rtol=1e-15)
    np.testing.assert_allclose(apply(trimmed_mean(0.0), POINTS), POINTS.mean(0), rtol=1e-14)
    np.testing.assert_allclose(apply(trimmed_mean(0.3), POINTS), np.sort(POINTS, 0)[2:5].mean(0), rtol=1e-14)


def test_krum_scores_and_choice() -> None:
    squared = ((POINTS[:, None] - POINTS[None]) ** 2).sum(-1)
    want = np.sort(squared, 1)[:, 1:4].sum(1)  # 7 - 2 - 2 nearest without itself
    np.testing.assert_allclose(krum_scores(jnp.asarray(POINTS), jnp.asarray(ALL), 2), want, rtol=1e-13)
    np.testing.assert_array_equal(apply(krum(2), POINTS), POINTS[want.argmin()])
    np.testing.assert_allclose(apply(multi_krum(2, 7), POINTS), POINTS.mean(0), rtol=1e-14)


def test_geometric_median_is_stationary() -> None:
    """sum_i (x_i - z) / |x_i - z| = 0."""
    z = apply(geometric_median(500), POINTS)
    away = POINTS - z
    np.testing.assert_allclose((away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0), 0, atol=1e-13)


def test_a_robust_round_holds_where_the_mean_is_carried_away() -> None:
    """One of five clients sends its change a million times enlarged, with its sign flipped."""
    problem = cohort(5)
    data = shard(problem, 2)._replace(rate=jnp.asarray([1.0, 1, 1, 1, -1e6]))
    base = fedavg(loss, optax.sgd(0.1))
    assert np.abs(run(base, data, 1)[0].delta["w"]).max() > 1e4
    held = run(robust(base, coordinate_median), data, 40)[0].delta["w"]
    assert np.linalg.norm(held - cohort(5).centre[:4].mean(0)) < 2


def test_a_robust_rule_without_trimming_is_the_algorithm_itself() -> None:
    """Also for an algorithm with public numbers, FedNova."""
    base, data = fednova(loss, 0.1), shard(cohort(), 4)
    counts = jnp.asarray([1, 2, 3, 4])
    got, want = (run(a, data, 1, steps=counts)[0] for a in (robust(base, trimmed_mean(0.0)), base))
    np.testing.assert_allclose(got.delta["w"], want.delta["w"], rtol=1e-13)


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(BadFederation, match="at least 11"):
        jax.eval_shape(krum(4), POINTS, np.ones(7), ALL)
    with pytest.raises(BadFederation, match="trim"):
        trimmed_mean(0.5)
    with pytest.raises(BadFederation, match="own way"):
        robust(feddf(loss, optax.sgd(0.1), lambda d, b: b, jnp.ones((1, 1))), coordinate_median)
