import numpy as np
import pytest

from medvfm_jax.federated.run.site_scores import OVER_SITES, over_sites, site_scores, worst_site


def row(site, patient, dice, label="cell", **others):
    return {"site": site, "patient": patient, "case": patient, "label": label, "dice": dice} | others


ROWS = [row("b", f"b{i}", 0.5 + 0.1 * i) for i in range(5)] + [row("a", f"a{i}", 0.9) for i in range(3)]


def test_each_site_has_its_mean_its_interval_and_its_patients():
    a, b = site_scores(ROWS)
    assert (a.site, a.n, b.site, b.n) == ("a", 3, "b", 5)
    assert a.mean == a.low == a.high == pytest.approx(0.9)
    assert b.mean == pytest.approx(0.7)
    half = (
        2.7764 * np.std([0.5, 0.6, 0.7, 0.8, 0.9], ddof=1) / np.sqrt(5)
    )  # Student's t of four degrees of freedom
    assert b.low == pytest.approx(0.7 - half, abs=1e-4)
    assert b.high == pytest.approx(0.7 + half, abs=1e-4)
    assert worst_site([a, b]) == b


def test_over_sites_every_site_counts_once_however_many_patients_it_has():
    score = over_sites(ROWS)
    assert score.site == OVER_SITES
    assert score.mean == pytest.approx((0.9 + 0.7) / 2)
    assert score.n == 8
    b = site_scores(ROWS)[1]
    assert score.high - score.low == pytest.approx((b.high - b.low) / 2)  # those of a are equal
    assert over_sites([]) is None


def test_scores_end_at_one_and_many_patients_get_the_bootstrap():
    (score,) = site_scores([row("s", "p", 0.7), row("s", "q", 0.9)])
    assert (score.low, score.high) == (0.0, 1.0)
    values = np.random.default_rng(0).beta(9, 1.5, 80)
    (score,) = site_scores([row("s", str(i), v) for i, v in enumerate(values)])
    half = 1.96 * values.std() / np.sqrt(80)
    assert (score.high - score.low) / 2 == pytest.approx(half, rel=0.1)


def test_patients_not_cases_count_and_labels_are_averaged_within_them():
    rows = [row("s", "p", 0.2), row("s", "p", 0.4), row("s", "p", 0.9, "core"), row("s", "q", None, "core")]
    (score,) = site_scores(rows)
    assert score.mean == pytest.approx((0.3 + 0.9) / 2)
    assert (score.low, score.high, score.n) == (None, None, 1)
    assert over_sites(rows).low is None


def test_object_rows_count_only_for_scores_that_have_no_others():
    rows = [row("s", "p", 0.2, pq=None), row("s", "p", None, "instances", pq=0.7)]
    assert site_scores(rows)[0].mean == pytest.approx(0.2)
    assert site_scores(rows, "pq")[0].mean == pytest.approx(0.7)
    assert site_scores([{"label": "x", "case": "c", "dice": 0.5}])[0].site == "all"
