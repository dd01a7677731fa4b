import json
import math

import numpy as np
import pytest

from medvfm_jax.metrics import IncompleteRow, summarise
from medvfm_jax.metrics.bootstrap import resample_counts, resampled_means


def rows(values, label="organ", **more):
    return [{"case": f"c{k}", "label": label, "dice": v, "empty": None} | more for k, v in enumerate(values)]


def only(summary, metric="dice", label="organ"):
    (row,) = [r for r in summary["summary"] if r["metric"] == metric and r["label"] == label]
    return row


def test_mean_median_n_and_interval():
    values = np.random.default_rng(0).normal(0.8, 0.05, 60)
    row = only(summarise(rows(values.tolist())))
    assert row["mean"] == pytest.approx(values.mean())
    assert row["median"] == pytest.approx(np.median(values))
    assert row["n"] == row["n_cases"] == 60
    half = (
        1.96 * values.std() / math.sqrt(60)
    )  # normal theory; the bootstrap estimates the same with n, not n - 1
    assert row["low"] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert row["high"] == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_patient_is_the_unit():
    # Patient a has three scans: it counts once, and its scans do not narrow the interval.
    scans = [
        {"case": f"c{k}", "patient": p, "label": "organ", "dice": v}
        for k, (p, v) in enumerate([("a", 0.9), ("a", 0.9), ("a", 0.9), ("b", 0.5)])
    ]
    summary = summarise(scans)
    row = only(summary)
    assert row["mean"] == pytest.approx(0.7)
    assert (row["n"], row["n_cases"]) == (2, 4)
    assert (summary["n_patients"], summary["n_cases"]) == (2, 4)
    assert (row["low"], row["high"]) == (0, 1)  # of two patients nothing is known: 0.7 ± 12.7 · 0.2


def test_all_is_the_mean_of_the_label_means():
    # The second label is defined for one patient only: a mean over cases first would give another number.
    table = rows([0.9, 0.7]) + rows([0.1, None], label="tumour")
    table[3]["empty"] = "both"
    summary = summarise(table)
    assert only(summary, label="all")["mean"] == pytest.approx((0.8 + 0.1) / 2)
    assert only(summary, label="tumour")["n"] == 1
    assert only(summary, label="tumour")["low"] is None
    assert summary["empty"] == {"reference": 0, "prediction": 0, "both": 1}


def test_nan_and_none_are_undefined_and_a_metric_without_values_is_left_out():
    table = rows([0.5, math.nan, None], hd95=None)
    summary = summarise(table)
    assert only(summary)["n"] == 1
    assert {r["metric"] for r in summary["summary"]} == {"dice"}


def test_instances_stay_out_of_the_mean_over_labels():
    table = rows([0.9, 0.7]) + [
        {"case": f"c{k}", "label": "instances", "pq": 0.5, "empty": None} for k in (0, 1)
    ]
    summary = summarise(table)
    assert {r["label"] for r in summary["summary"]} == {"organ", "instances"}
    assert only(summary, "pq", "instances")["mean"] == 0.5


def test_same_seed_same_interval_and_plain_json():
    table = rows([0.2, 0.4, 0.9, 0.5])
    assert summarise(table, seed=3) == summarise(table, seed=3)
    assert json.loads(json.dumps(summarise(table), allow_nan=False)) == summarise(table)
    assert summarise([])["summary"] == []


def test_rows_must_say_whose_they_are():
    with pytest.raises(IncompleteRow, match="patient"):
        summarise([{"label": "organ", "dice": 0.5}])


def test_every_resample_draws_n_patients():
    counts = resample_counts(7, 100, seed=0)
    np.testing.assert_array_equal(counts.sum(1), np.full(100, 7))
    np.testing.assert_allclose(resampled_means(np.full((7, 2), 3.0), counts), 3.0)
    lonely = resampled_means(np.array([[np.nan], [1.0]]), np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert math.isnan(lonely[0, 0])
    assert lonely[1, 0] == 1.0
