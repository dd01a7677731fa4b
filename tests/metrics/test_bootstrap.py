"""Intervals: closed forms, and how often they cover the truth for as few patients as medical studies have."""

import numpy as np
import pytest
from scipy import stats

from medvfm_jax.metrics import compare, summarise
from medvfm_jax.metrics.bootstrap import (
    FEW,
    bounds_of,
    interval,
    method,
    methods_in_words,
    percentile_interval,
    t_interval,
)

# name: (sample of a shape, its mean)
DISTRIBUTIONS = {
    "dice": (lambda rng, shape: rng.beta(9, 1.5, shape), 9 / 10.5),  # skewed towards failures, mean 0.86
    "normal": (lambda rng, shape: rng.normal(0.8, 0.05, shape), 0.8),
    "difference": (lambda rng, shape: rng.laplace(0.01, 0.03, shape), 0.01),  # of two runs, heavy tails
    # Where a sample seldom holds what makes the mean, no interval of a few patients is good.
    "left tail": (lambda rng, shape: rng.beta(4, 0.4, shape), 4 / 4.4),  # most close to 1
    "distance": (lambda rng, shape: rng.lognormal(1, 1, shape), np.exp(1.5)),
    "failures": (
        lambda rng, shape: np.where(rng.random(shape) < 0.1, 0.0, rng.beta(30, 3, shape)),
        0.9 * 30 / 33,
    ),
}
# Simulated coverage of the 95 % interval of n patients; the bootstrap's for n = 4, 5, 10, 20, 30 in brackets.
COVERAGE = {
    "dice": {4: 0.92, 5: 0.92, 10: 0.93, 20: 0.94, 30: 0.94, 50: 0.94},  # (0.78, 0.83, 0.88, 0.92, 0.92)
    "normal": {4: 0.95, 5: 0.95, 10: 0.95, 20: 0.95, 30: 0.95, 50: 0.94},  # (0.80, 0.84, 0.89, 0.91, 0.93)
    "difference": {
        4: 0.97,
        5: 0.96,
        10: 0.96,
        20: 0.95,
        30: 0.95,
        50: 0.94,
    },  # (0.77, 0.83, 0.88, 0.92, 0.93)
    "left tail": {4: 0.83, 5: 0.83, 10: 0.88, 20: 0.90, 30: 0.92, 50: 0.93},  # (-, -, -, 0.91, 0.92)
    "distance": {4: 0.83, 5: 0.82, 10: 0.84, 20: 0.87, 30: 0.88, 50: 0.90},  # (-, -, -, 0.86, 0.88)
    "failures": {4: 0.55, 5: 0.52, 10: 0.65, 20: 0.88, 30: 0.90, 50: 0.92},  # (-, -, -, 0.87, 0.92)
}
GOOD = ("dice", "normal", "difference")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [4, 5, 10, 20, 30, 50])
def test_the_interval_covers_the_mean_as_often_as_the_table_says(name, n):
    sample, mean = DISTRIBUTIONS[name]
    values = sample(np.random.default_rng(n), (2000 if n < FEW else 400, n))
    low, high = np.array([interval(row, seed, 300) for seed, row in enumerate(values)]).T
    covered = np.mean((low <= mean) & (mean <= high))
    expected = COVERAGE[name][n]
    error = 3 * np.sqrt(expected * (1 - expected) / len(values))
    assert covered == pytest.approx(expected, abs=0.01 + error)
    assert covered > 0.90 or name not in GOOD


def test_few_patients_get_students_t():
    values = np.random.default_rng(0).normal(0.8, 0.05, 7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    np.testing.assert_allclose(interval(values), expected, rtol=1e-12)
    np.testing.assert_allclose(interval([*values, np.nan]), expected, rtol=1e-12)
    kinds = [method(np.zeros(n)) for n in (0, 1, 2, FEW - 1, FEW)]
    assert kinds == [None, None, "t", "t", "bootstrap"]


def test_groups_have_welchs_degrees_of_freedom():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.6, 0.02, 5), rng.normal(0.8, 0.1, 9)
    half = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    low, high = t_interval(0.0, [(a - a.mean()) / 5 / 2, (b - b.mean()) / 9 / 2])
    assert high - low == pytest.approx(
        (half.high - half.low) / 2
    )  # of the mean of two means, not their difference


def test_intervals_stay_where_scores_are():
    values = [0.99, 0.9, 1.0]
    assert interval(values)[1] > 1
    assert interval(values, bounds=bounds_of("dice")) == (interval(values)[0], 1.0)
    assert [bounds_of(name) for name in ("dice", "f1_50", "hd95", "mine")] == [
        (0, 1),
        (0, 1),
        (0, np.inf),
        (-np.inf, np.inf),
    ]
    assert bounds_of("dice", difference=True) == (-1, 1)
    rows = [{"case": c, "label": "organ", "dice": v, "hd95": 40 * (1 - v)} for c, v in zip("abc", values)]
    dice, distance = summarise(rows)["summary"]
    assert (dice["high"], distance["low"]) == (1.0, 0.0)


@pytest.mark.parametrize("n", [2, 5, FEW])
def test_equal_patients_have_an_interval_without_width(n):
    assert interval(np.full(n, 0.7), bounds=bounds_of("dice")) == pytest.approx((0.7, 0.7))


def test_one_patient_has_no_interval_and_it_is_said():
    assert interval([0.7]) == interval([np.nan, 0.7]) == interval([]) == (None, None)
    (row,) = summarise([{"case": "a", "label": "organ", "dice": 0.7}])["summary"]
    assert (row["low"], row["high"], row["interval"], row["n"]) == (None, None, None, 1)
    assert methods_in_words([row]) == "none of fewer than two patients, or of infinite distances"
    # A damaged record: what is no name is not named.
    assert methods_in_words(
        [{"low": 0.1, "interval": ["t"]}, {"low": 0.1, "interval": "t"}]
    ) == methods_in_words([{"low": 0.1, "interval": "t"}])


def test_every_row_names_its_method():
    values = np.random.default_rng(0).beta(9, 1.5, FEW)
    rows = [{"case": str(k), "label": "organ", "dice": v} for k, v in enumerate(values)]
    rows += [{"case": str(k), "label": "rare", "dice": v} for k, v in enumerate(values[:4])]
    summary = {row["label"]: row for row in summarise(rows)["summary"]}
    assert {name: row["interval"] for name, row in summary.items()} == {
        "all": "bootstrap",
        "organ": "bootstrap",
        "rare": "t",
    }
    assert methods_in_words(summary.values()) == "bootstrap over patients or Student's t over patients"
    assert methods_in_words([{"low": 0.1}]) == "bootstrap over patients"  # of a file made before
    assert compare(rows[:5], rows[:5])["interval"] == "t"


def test_the_mean_over_labels_varies_as_that_of_the_patients_means():
    values = np.random.default_rng(0).beta(9, 1.5, (6, 2))
    rows = [
        {"case": str(k), "label": label, "dice": row[i]}
        for k, row in enumerate(values)
        for i, label in enumerate(("a", "b"))
    ]
    whole = summarise(rows)["summary"][0]
    assert (whole["label"], whole["n"]) == ("all", 6)
    np.testing.assert_allclose((whole["low"], whole["high"]), interval(values.mean(1)))
    # Of a label that one patient lacks, that patient adds nothing to the mean.
    rows = [row for row in rows if (row["case"], row["label"]) != ("0", "b")]
    whole = summarise(rows)["summary"][0]
    a, b = values[:, 0], values[1:, 1]
    adds = (a - a.mean()) / 12 + np.concatenate([[0], (b - b.mean()) / 10])
    expected = stats.t.interval(0.95, 5, (a.mean() + b.mean()) / 2, np.sqrt((adds**2).sum() * 6 / 5))
    np.testing.assert_allclose((whole["low"], whole["high"]), expected)


def test_percentiles_without_a_number_are_none():
    assert percentile_interval(np.array([np.nan])) == (None, None)


@pytest.mark.parametrize("n", [3, FEW + 10])
@pytest.mark.filterwarnings("error")
def test_an_infinite_distance_leaves_no_interval(n):
    """A prediction without the structure is infinitely far: the mean is infinite and nothing bounds it."""
    values = np.r_[np.arange(2.0, n + 1), np.inf]
    assert method(values) is None
    assert interval(values) == (None, None)
    rows = [{"patient": i, "label": "a", "hd95": value} for i, value in enumerate(values)]
    (row,) = summarise(rows)["summary"]
    assert (row["mean"], row["low"], row["high"], row["interval"], row["n"]) == (np.inf, None, None, None, n)
    assert row["median"] == np.median(values)
