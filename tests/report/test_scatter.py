"""Scatter plots: every point is drawn where it belongs, and none is lost unsaid."""

import re

import pytest

from medvfm_jax.report.scatter import Point, scatter


def centres(svg):
    return [tuple(map(float, found)) for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_points_lie_in_proportion():
    svg = scatter("t", [Point("a", 1, 0), Point("b", 2, 5), Point("c", 3, 10)], "x", "y")
    (x0, y0), (x1, y1), (x2, y2) = centres(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert x0 < x1
    assert y0 > y1  # upwards
    assert "logarithmic" not in svg


def test_numbers_of_many_sizes_are_on_a_logarithmic_axis():
    svg = scatter("t", [Point("a", 1, 0), Point("b", 10, 1), Point("c", 100, 2)], "x", "y")
    (x0, _), (x1, _), (x2, _) = centres(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert "x, logarithmic" in svg
    assert "logarithmic" not in scatter("t", [Point("a", 0, 0), Point("b", 100, 1)], "x", "y")


def test_what_has_no_number_is_counted():
    svg = scatter("t", [Point("a", 1, 0), Point("b", float("nan"), 1)], "x", "y")
    assert len(centres(svg)) == 1
    assert "(1 without a number)" in svg
    assert "nothing to show" in scatter("t", [], "x", "y")


def test_names_are_escaped():
    assert "<b>" not in scatter("<b>", [Point("<b>", 1, 1)], "<b>", "<b>")
