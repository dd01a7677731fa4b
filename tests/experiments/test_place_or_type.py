"""The nine cells of place and type beside what was predicted of them."""

import json

import numpy as np
import pytest

from experiments.place_or_type import CATALOGUE, CELLS, RESULTS, Plan, divided, markdown, table_of


def catalogue(values):
    return {
        "rows": {
            f"nuclei: {cell}": {"summary": [{"metric": "dice", "mean": v}]} for cell, v in values.items()
        }
    }


def test_a_prediction_with_the_measured_order_is_told_from_one_without():
    values = {cell: 0.9 + 0.01 * i for i, cell in enumerate(CELLS)}
    predicted = {cell: {"right": values[cell] ** 3, "wrong": -values[cell]} for cell in CELLS}
    table = table_of(Plan("data"), predicted, {"size": 1.0}, catalogue(values))
    assert table["agreement"]["right"]["rho"] == pytest.approx(1)
    assert table["agreement"]["wrong"]["rho"] == pytest.approx(-1)
    assert "| right | +1.00 |" in markdown(table)
    assert sum(table["variance"].values()) == pytest.approx(1)


def test_shares_of_the_variance():
    grid = np.array([[1.0, 2.0], [5.0, 8.0]])  # effects -2.5, 2.5 and -1, 1, interaction 0.5
    found = divided(grid)
    whole = ((grid - 4) ** 2).sum()
    assert found["place"] == pytest.approx(4 * 2.5**2 / whole)
    assert found["type"] == pytest.approx(4 * 1**2 / whole)
    assert found["rest"] == pytest.approx(4 * 0.5**2 / whole)


def test_the_catalogue_has_the_nine_cells():
    rows = json.loads(CATALOGUE.read_text())["rows"]
    assert all(f"nuclei: {cell}" in rows for cell in CELLS)
    assert RESULTS.parent == CATALOGUE.parent
