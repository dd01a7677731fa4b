"""The table of compression: rows, differences on the same images, and that the documentation has its figures."""

import json

import pytest

from experiments.compression import PLOT, RESULTS, WHOLE, Plan, markdown, plot_of, table_of
from experiments.covering_tests import ROOT


def scores(dice, **more):
    cases = [
        {"case": name, "patient": name, "site": None, "label": "foreground", "dice": value}
        for name, value in dice.items()
    ]
    about = {"data": "cells", "provenance": {"data_sha256": "0"}, "metric_profile": "strict"}
    return {**about, "cases": cases, **more}


def test_rows_are_compared_on_the_cases_that_all_have():
    found = {
        WHOLE: scores({"a": 0.9, "b": 0.8, "c": 0.1}),
        "int8": scores({"a": 0.8, "b": 0.8}, compression={"method": "weight_only", "options": {}, "bits": 8}),
    }
    table = table_of(Plan("cells"), {WHOLE: 4_000_000, "int8": 1_000_000}, found)
    assert table["plan"]["cases"] == 2
    rows = table["budgets"]
    assert rows[WHOLE]["dice"]["mean"] == pytest.approx(0.85)
    assert rows["int8"]["share"] == 0.25
    assert rows["int8"]["facts"] == {"bits": 8}
    assert rows["int8"]["paired_dice"]["difference"] == pytest.approx(-0.05)
    assert "| int8 | `--method weight_only --set bits=8` | 1.0 | 25 % |" in markdown(table)
    assert plot_of(table).count("<circle") == 2


def test_the_documentation_has_the_figures_of_the_file():
    table = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for line in markdown(table).splitlines():
        assert line in page
    assert PLOT.read_text(encoding="utf-8") == plot_of(table)
