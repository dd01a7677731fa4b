import math

import pytest

from medvfm_jax.report import words


def test_text_is_safe_between_tags_and_in_attributes():
    assert words.text("<b a=\"x\" b='y'>&") == "&lt;b a=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;"
    assert words.text(3) == "3"


@pytest.mark.parametrize(
    ("metric", "name"),
    [("dice", "Dice"), ("hd95", "HD95 (mm)"), ("f1_50", "F1 at IoU 0.50"), ("my<metric", "my&lt;metric")],
)
def test_metrics_are_written_as_readers_know_them_and_only_distances_have_a_unit(metric, name):
    assert words.metric_name(metric, "mm") == name


def test_every_score_that_evaluate_can_write_has_a_name():
    scores = ["dice", "iou", "hd", "hd95", "assd", "nsd", "aji", "pq", "sq", "dq", "f1_50", "f1_75"]
    assert not {words.metric_name(score) for score in scores} & set(scores)
    assert [s for s in scores if not words.larger_is_better(s)] == ["hd", "hd95", "assd"]


@pytest.mark.parametrize(
    ("value", "metric", "signed", "written"),
    [
        (0.87666, "dice", False, "0.877"),
        (13.2608, "hd95", False, "13.26"),
        (1, "dice", False, "1.000"),
        (0.0125, "dice", True, "+0.013"),
        (-0.0004, "dice", True, "+0.000"),  # no -0.000
        (-0.5, "dice", True, "-0.500"),
        (None, "dice", False, "–"),
        (math.nan, "dice", False, "–"),
        (math.inf, "hd", False, "–"),
        (True, "dice", False, "–"),
        ("0.5", "dice", False, "–"),
    ],
)
def test_a_score_has_the_digits_of_its_metric_and_what_is_no_number_is_a_dash(value, metric, signed, written):
    assert words.score(value, metric, signed=signed) == written


def test_an_interval_has_two_ends_or_is_a_dash():
    assert words.interval({"low": 0.8374, "high": 0.9407}, "dice") == "0.837 to 0.941"
    assert words.interval({"low": -0.1, "high": 0.2}, "hd95", signed=True) == "-0.10 to +0.20"
    assert words.interval({"low": None, "high": None}, "dice") == "–"
    assert words.interval({"low": 0.5}, "dice") == "–"


def test_counts():
    assert words.count(4058340) == "4,058,340"
    assert words.count(1199.7) == "1,200"
    assert words.count(None) == "–"
    assert [words.counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert words.counted(2, "case was", "cases were") == "2 cases were"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
        (16_233_360, "16.2 MB"), (2.5e9, "2.5 GB"), (None, "–"),
    ],
)  # fmt: skip
def test_a_size_has_a_unit_and_is_never_a_thousand_of_it(value, written):
    assert words.size(value) == written


@pytest.mark.parametrize(
    ("part", "whole", "written"),
    [
        (0, 10, "0 %"), (1, 1000, "0.1 %"), (1, 10**9, "below 0.001 %"), (43, 100, "43 %"), (7, 7, "100 %"),
        (9_999, 10_000, "over 99 %"), (1, 0, "–"), (None, 5, "–"),
    ],
)  # fmt: skip
def test_a_share_is_nought_or_100_only_when_it_is(part, whole, written):
    assert words.share(part, whole) == written


def test_small_p_values_are_bounded_not_zero():
    assert words.p_value(0.0) == "&lt; 0.001"
    assert words.p_value(0.04321) == "0.043"
    assert words.p_value(None) == "–"
