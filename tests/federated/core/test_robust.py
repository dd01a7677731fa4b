"""Robust rules: exact on small examples, deaf to a fifth of bad clients, blind to absent ones."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

from medvfm_jax.federated.algorithms import fedavg, feddf, fednova
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.robust import (
    coordinate_median,
    geometric_median,
    krum,
    krum_scores,
    multi_krum,
    robust,
    trimmed_mean,
    weighted_median,
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
    return np.asarray(compiled(rule)(jnp.asarray(points), jnp.asarray(present, float), jnp.asarray(present)))


compiled = functools.cache(jax.jit)


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
    z = apply(geometric_median(500, 1e-15), POINTS)
    away = POINTS - z
    np.testing.assert_allclose((away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0), 0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_geometric_median_is_the_least_sum_of_distances(seed: int) -> None:
    """Against a general minimiser, with weights, points that coincide and one that is the solution."""
    rng = np.random.default_rng(seed)
    points, weights = rng.normal(3, 1, (9, 4)), rng.uniform(0.5, 2, 9)
    points[1] = points[0]
    if seed == 3:
        weights[:2] = 20.0  # more than half of the weight is at one point

    def total(z: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(points - z, axis=1))

    z = np.asarray(geometric_median(1000, 1e-12)(jnp.asarray(points), jnp.asarray(weights), np.ones(9, bool)))
    want = minimize(total, points.mean(0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert total(z) <= want.fun + 1e-9
    np.testing.assert_allclose(z, want.x, atol=1e-4)
    if seed == 3:
        np.testing.assert_array_equal(z, points[0])


@pytest.mark.parametrize("far", [1e2, 1e8])
def test_many_bad_clients_of_little_weight_are_held_to_the_bound(far) -> None:
    """Seven of eleven are bad and have 26 % of the weight: medians by count would be theirs."""
    good = np.random.default_rng(0).normal(3, 0.1, (4, 5))
    points = np.concatenate([good, np.full((7, 5), far)]).astype(np.float32)
    weights = np.r_[np.full(4, 10.0), np.full(7, 2.0)].astype(np.float32)
    z = np.asarray(geometric_median()(jnp.asarray(points), jnp.asarray(weights), np.ones(11, bool)))
    centre, share = good.mean(0), 14 / 54
    radius = np.linalg.norm(good - centre, axis=1).max()
    assert np.linalg.norm(z - centre) <= radius * (1 - share) / np.sqrt(1 - 2 * share)


def test_the_weighted_median_has_half_of_the_weight_on_either_side() -> None:
    points = jnp.asarray([[5.0], [1.0], [2.0], [9.0], [-7.0]])
    present = jnp.asarray([True, True, True, True, False])
    for weights, expected in (
        ([1, 1, 1, 1, 9], 3.5),
        ([1, 9, 1, 1, 9], 1.0),
        ([2, 1, 1, 1, 9], 5.0),
        ([1, 2, 1, 2, 9], 3.5),
    ):
        assert weighted_median(points, jnp.asarray(weights, jnp.float32), present) == expected


def test_geometric_median_leaves_a_point_on_which_it_starts() -> None:
    """The coordinate-wise median is an upload, one that does not solve the problem."""
    points = np.array([[0.0, 0.0], [1.0, 10.0], [-1.0, 10.0], [2.0, -1.0], [-2.0, -1.0]])
    np.testing.assert_array_equal(np.median(points, axis=0), points[0])
    z = apply(geometric_median(500, 1e-15), points)
    away = points - z
    np.testing.assert_allclose((away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0), 0, atol=1e-12)
    assert 0.1 < z[1] < 10


N_ALL = 11
BREAKDOWN = {  # rule and the number of bad clients of eleven that it bears
    "median": (coordinate_median, 5),
    "trimmed": (trimmed_mean(0.46), 5),
    "krum": (krum(4), 4),
    "multi_krum": (multi_krum(4, 5), 4),
    "rfa": (geometric_median(), 5),
}
ATTACKS: dict[str, Callable] = {
    "zeros": lambda honest: np.zeros_like(honest[0]),
    "large": lambda honest: np.full_like(honest[0], 1e12),
    "sign": lambda honest: -10 * honest.mean(0),
    "copies": lambda honest: honest[honest.sum(1).argmax()],
    "a little": lambda honest: honest.mean(0) - 1.5 * honest.std(0),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", BREAKDOWN)
def test_as_many_bad_clients_as_stated_keep_the_aggregate_near_the_honest_ones(
    rule: str, attack: str
) -> None:
    """Closed forms: the box of honest values (median, trimmed mean); Minsker's radius; for Krum the honest radius and
    sqrt((n - f - 2) / (n - 2 f - 1)) times the honest diameter, as a chosen bad upload has that many honest neighbours.
    """
    combine, bad = BREAKDOWN[rule]
    for seed in range(5):
        honest = np.random.default_rng(seed).normal(5, 1, (N_ALL - bad, 6))
        points = np.concatenate([np.broadcast_to(ATTACKS[attack](honest), (bad, 6)), honest])
        z = apply(combine, points)
        if rule in ("median", "trimmed"):
            assert (honest.min(0) - 1e-12 <= z).all()
            assert (z <= honest.max(0) + 1e-12).all()
            continue
        centre = honest.mean(0)
        radius = np.linalg.norm(honest - centre, axis=1).max()
        if rule == "rfa":
            share = bad / N_ALL
            limit = radius * (1 - share) / np.sqrt(1 - 2 * share)
        else:
            diameter = np.linalg.norm(honest[:, None] - honest[None], axis=-1).max()
            limit = radius + diameter * np.sqrt((N_ALL - bad - 2) / (N_ALL - 2 * bad - 1))
        assert np.linalg.norm(z - centre) <= limit


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rule", BREAKDOWN)
def test_uploads_that_are_not_finite_are_as_if_they_had_not_come(rule: str, value: float) -> None:
    """To the rule, whatever is in an absent row; in a round they are excluded and counted."""
    combine, _ = BREAKDOWN[rule]
    honest = np.random.default_rng(0).normal(5, 1, (N_ALL, 6))
    points = np.concatenate([np.full((2, 6), value), honest])
    present = np.arange(len(points)) >= 2
    np.testing.assert_allclose(apply(combine, points, present), apply(combine, honest), rtol=1e-12)


def test_a_round_excludes_what_is_not_finite_before_the_rule() -> None:
    data = shard(cohort(5), 1)._replace(rate=jnp.asarray([np.nan, np.inf, 1, 1, 1]))
    server, _, metrics = run(robust(fedavg(gradient_of(loss), optax.sgd(0.1)), geometric_median()), data, 1)
    assert metrics.excluded.tolist() == [True, True, False, False, False]
    assert np.isfinite(server.delta["w"]).all()


def test_a_robust_round_holds_where_the_mean_is_carried_away() -> None:
    """One of five clients sends its change a million times enlarged, with its sign flipped."""
    problem = cohort(5)
    data = shard(problem, 2)._replace(rate=jnp.asarray([1.0, 1, 1, 1, -1e6]))
    base = fedavg(gradient_of(loss), optax.sgd(0.1))
    assert np.abs(run(base, data, 1)[0].delta["w"]).max() > 1e4
    held = run(robust(base, coordinate_median), data, 40)[0].delta["w"]
    assert np.linalg.norm(held - cohort(5).centre[:4].mean(0)) < 2


def test_a_robust_rule_without_trimming_is_the_algorithm_itself() -> None:
    """Also for an algorithm with public numbers, FedNova."""
    base, data = fednova(gradient_of(loss), 0.1), shard(cohort(), 4)
    counts = jnp.asarray([1, 2, 3, 4])
    got, want = (run(a, data, 1, steps=counts)[0] for a in (robust(base, trimmed_mean(0.0)), base))
    np.testing.assert_allclose(got.delta["w"], want.delta["w"], rtol=1e-13)


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(BadFederation, match="at least 11"):
        jax.eval_shape(krum(4), POINTS, np.ones(7), ALL)
    with pytest.raises(BadFederation, match="trim"):
        trimmed_mean(0.5)
    with pytest.raises(BadFederation, match="tolerance positive, not 3 and 0"):
        geometric_median(3, 0.0)
    with pytest.raises(BadFederation, match="own way"):
        robust(feddf(gradient_of(loss), optax.sgd(0.1), lambda d, b: b, jnp.ones((1, 1))), coordinate_median)
