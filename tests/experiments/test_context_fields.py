"""Predicted receptive fields against gains: diameters of discs, and tables whose order is known."""

import json

import numpy as np
import pytest

from experiments.context_blocks import RESULTS as ROWS_OF_BLOCKS
from experiments.context_blocks import summary
from experiments.context_fields import RESULTS, dice_by_case, markdown, median_diameter, table_of
from experiments.covering_tests import ROOT
from medvfm_jax.theory import Extent


def a_field(square):
    return Extent(square / 4, square / 2, square), Extent(0.0, 0.0, 1.0)


def test_the_diameter_is_that_of_circles_of_equal_area():
    rows, columns = np.indices((80, 200))
    objects = np.zeros((80, 200), np.int32)
    for number, (middle, radius) in {1: (30, 10), 2: (80, 20), 7: (150, 25)}.items():
        objects[(rows - 40) ** 2 + (columns - middle) ** 2 < radius**2] = number
    assert median_diameter(objects) == pytest.approx(40, rel=0.01)


def test_blocks_whose_gain_grows_with_the_field_agree_and_the_gain_of_each_is_compared_with_size():
    sizes = {f"c{i}": float(i) for i in range(6)}
    fields = {
        name: (a_field(square), a_field(200 - square)) for name, square in zip("abcd", (10, 20, 30, 40))
    }
    gains = {
        name: {case: step + (1 if name in "ab" else -1) * 0.001 * size for case, size in sizes.items()}
        for name, step in zip("abcd", (0.01, 0.02, 0.03, 0.04))
    }
    table = table_of((a_field(5), a_field(6)), fields, gains, sizes)
    assert table["blocks"]["a"]["before"] == {"deviation": 10 * 3 / 8, "square": 10, "square_error": 1}
    assert table["blocks"]["b"]["gain"] == pytest.approx(0.02 + 0.0025)
    assert [table["blocks"][name]["with_size"]["rho"] for name in "abcd"] == pytest.approx([1, 1, -1, -1])
    agreement = {name: found["rho"] for name, found in table["agreement"].items()}
    assert agreement["field before training and gain"] == pytest.approx(1)
    assert agreement["field after training and gain"] == pytest.approx(-1)
    assert agreement["field before training and gain's correlation with size"] < -0.8
    assert table["diameter"] == {"low": 0, "median": 2.5, "high": 5}
    assert markdown(table).splitlines()[3].startswith("| d | 40 ± 1 | 160 ± 1 | +0.0375 |")


def test_dice_is_taken_by_case(tmp_path):
    rows = [{"case": "a", "label": "foreground", "dice": 0.5, "hd95": 7.0}]
    rows.append({"case": "a", "label": "instances", "aji": 0.3})
    (tmp_path / "scores.json").write_text(json.dumps({"cases": rows}))
    assert dice_by_case(tmp_path) == {"a": 0.5}


def test_the_documentation_has_the_figures_of_the_files():
    theory, results = (
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("theory.md", "results.md")
    )
    for line in markdown(json.loads(RESULTS.read_text(encoding="utf-8"))).splitlines():
        assert line in theory
    for line in summary(json.loads(ROWS_OF_BLOCKS.read_text(encoding="utf-8"))).splitlines():
        assert line in results
