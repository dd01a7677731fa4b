import io

import pytest
from rich.console import Console

from medvfm_jax.metrics import summarise
from medvfm_jax.predict.score_table import interval, number, show


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.87654, "dice", "0.8765"),
        (12.3456, "hd95", "12.35"),
        (3.0, "assd", "3.00"),
        (None, "dice", "-"),
        (0.0, "nsd", "0.0000"),
    ],
)
def test_a_score_has_the_digits_it_deserves(value, metric, text):
    assert number(value, metric) == text


def test_an_interval_needs_two_patients():
    assert interval({"metric": "dice", "low": None, "high": None}) == "-"
    assert interval({"metric": "hd", "low": 1.0, "high": 2.5}) == "1.00 to 2.50"


def shown(**changes):
    rows = [
        {
            "case": f"c{i}",
            "patient": f"p{i // 2}",
            "label": "liver",
            "dice": dice,
            "hd95": None,
            "empty": empty,
        }
        for i, (dice, empty) in enumerate([(0.5, None), (0.7, None), (0.0, "prediction"), (1.0, "both")])
    ]
    scores = {
        "model": "sam-b + samed", "prompt": "none", "flips": False, "split": "test", "metric_profile": "strict",
        "skipped": [], **summarise(rows), **changes,
    }  # fmt: skip
    stream = io.StringIO()
    show(scores, Console(file=stream, width=200))
    return stream.getvalue()


def test_the_table_says_what_was_measured_on_how_many():
    text = shown()
    assert "sam-b + samed, no prompt, test split, strict profile" in text
    (line,) = [row for row in text.splitlines() if "liver" in row]
    assert [w for w in line.replace("│", " ").split() if w[0].isalnum()][:3] == ["dice", "liver", "0.5500"]
    assert line.replace("│", " ").split()[-1] == "2"  # patients
    assert "n = 2 patients, 4 cases" in text
    assert "empty: 0 reference, 1 prediction, 1 both" in text
    assert "hd95" not in text
    assert "skipped" not in text


def test_prompts_from_the_reference_flips_and_skipped_cases_are_not_kept_quiet():
    text = shown(prompt="box", flips=True, skipped=[{"case": "a", "why": "empty"}])
    text = " ".join(text.split())  # titles are wrapped at the width of the table
    assert "box prompts from the reference, averaged over flips, test split" in text
    assert "1 unreadable cases skipped" in text
