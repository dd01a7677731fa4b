"""Predicted against measured worth of encoders: rank correlation, and one encoder on a small dataset."""

import json

import pytest

from experiments.covering_tests import ROOT
from experiments.transferability import RESULTS, TOOLS, Plan, markdown, run, spearman, table_of
from medvfm_jax.data import make_phantom_dataset


def test_rank_correlation_and_the_share_of_orders():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == {
        "rho": pytest.approx(1),
        "p": pytest.approx(1 / 24),
        "n": 4,
    }
    assert spearman([1, 2, 3], [3, 2, 1]) == {"rho": pytest.approx(-1), "p": 1, "n": 3}
    # Squared differences of ranks 0, 1, 1, 0, 0: 1 - 6 * 2 / (5 * 24); four of 120 orders swap two neighbours.
    assert spearman([1, 2, 3, 4, 5], [1, 3, 2, 4, 9]) == {
        "rho": pytest.approx(0.9),
        "p": pytest.approx(5 / 120),
        "n": 5,
    }
    # Ranks 0.5, 0.5, 2 against 0, 1, 2.
    assert spearman([7, 7, 8], [1, 2, 3])["rho"] == pytest.approx(1.5 / 3**0.5)


def test_no_order_goes_with_none():
    assert spearman([1, 1, 1], [1, 2, 3]) == {"rho": 0, "p": 1, "n": 3}


@pytest.mark.slow
def test_small_encoders_are_measured_once(tmp_path):
    cells = make_phantom_dataset(tmp_path / "cells", "cells", 12, size=32)
    plan = Plan((str(cells),), ("lite-tiny-test", "twin=sam-tiny-test"), tmp_path / "out", 4, 10, 2)
    table = run(plan, tmp_path / "results.json")
    ((data, encoders),) = table["datasets"].items()
    assert set(encoders) == {"lite-tiny-test", "twin"}
    assert all(0 <= row["dice"]["mean"] <= 1 for row in encoders.values())
    for file in (tmp_path / "out").iterdir():
        record = json.loads(file.read_text())
        record["logme"]["value"] = 7.0 if "twin" in file.name else 6.0
        record["dice"]["mean"] = 0.5 if "twin" in file.name else 0.4
        file.write_text(json.dumps(record))
    again = run(plan, tmp_path / "results.json")
    assert again["agreement"][data]["logme"] == {"rho": pytest.approx(1), "p": 0.5, "n": 2}
    assert "7.000" in markdown(again)


def test_a_tool_agrees_that_has_the_measured_order():
    row = {tool: {"value": 1.0, "error": 0.1} for tool in TOOLS}
    row |= {"features": 4, "by_chance": 0.1, "points": 9}
    found = {
        "nuclei": {
            name: row
            | {"logme": {"value": value, "error": 0.1}, "dice": {"mean": dice, "error": 0.1, "patients": 3}}
            for name, value, dice in (("a", 0.1, 0.8), ("b", 0.3, 0.9), ("c", 0.2, 0.85))
        }
    }
    table = table_of(Plan(("nuclei",), ("a", "b", "c")), found)
    assert table["agreement"]["nuclei"]["logme"]["rho"] == pytest.approx(1)
    lines = [line for line in markdown(table).splitlines() if line.startswith(("| a", "| b", "| c"))]
    assert [line[2] for line in lines] == ["b", "c", "a"]


def test_the_documentation_has_the_figures_of_the_file():
    table = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    for line in markdown(table).splitlines():
        assert line in page
