import itertools
import math
import re

import numpy as np
import pytest

from medvfm_jax.report.charts import Interval, Series, curves, intervals, moving_average, standalone, ticks
from tests.report.parsed_page import Page


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.832, 0.838), (-3, 17), (1, 400), (1e-6, 3e-6), (5, 5), (0, 0), (-2, -2)]
)
def test_ticks_are_round_even_and_enclose_the_data(low, high):
    found = ticks(low, high)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    assert steps == pytest.approx([steps[0]] * len(steps))
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 2.5, 5)) < 1e-6


def test_ticks_of_steps_are_whole():
    assert ticks(1, 3, least=1.0) == [1, 2, 3]
    assert ticks(1, 1, least=1.0) == [0, 1, 2]


def test_a_moving_average_leaves_lines_alone_and_evens_out_what_alternates():
    line = [2.0 * k - 5 for k in range(20)]
    assert moving_average(line, 4) == pytest.approx(line)
    assert moving_average([0.0, 3.0] * 10, 1)[1:-1] == pytest.approx([1.0, 2.0] * 9)
    assert moving_average([1.0, 7.0, 4.0], 0) == [1.0, 7.0, 4.0]


def points_of(svg: str, kind: str) -> list[tuple[float, float]]:
    (path,) = [a["d"] for a in Page(svg).all("path") if kind in a["class"]]
    return [tuple(map(float, point.split())) for point in path[1:].split("L")]


def test_a_curve_goes_through_its_points_in_proportion():
    points = points_of(curves("loss", [Series("loss", [(0, 0.0), (50, 5.0), (100, 10.0)])]), "line")
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert y0 > y1 > y2  # up is more
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)


def test_long_curves_are_thinned_to_means():
    svg = curves("loss", [Series("loss", [(k, k % 2) for k in range(4000)])])
    heights = [y for _, y in points_of(svg, "line")]
    assert len(heights) == 400
    assert max(heights) - min(heights) < 0.11  # each is the mean of five zeros and five ones


def test_points_that_are_not_finite_are_left_out_and_nothing_is_drawn_without_any():
    assert curves("loss", []) == ""
    assert curves("loss", [Series("a", [(1, math.nan), (2, math.inf)])]) == ""
    svg = curves("loss", [Series("a", [(1, 1.0), (2, math.nan), (3, 2.0)], dots=True)])
    assert len(Page(svg).all("circle")) == 2
    assert "nan" not in svg


def test_one_point_is_a_dot():
    page = Page(curves("Dice", [Series("Dice", [(3, 0.5)])]))
    assert len(page.all("circle")) == 1
    assert page.all("path") == []


def test_titles_and_names_are_escaped():
    page = Page(curves("<loss>", [Series("<a>", [(1, 1.0)]), Series("<b>", [(1, 2.0)])], "<step>"))
    assert {tag for tag, _ in page.elements} <= {"svg", "text", "line", "circle", "title", "path"}
    assert "<loss>" in page.text
    assert "<a>" in page.text
    svg = intervals("<t>", [Interval("<run>", 0.5, 0.4, 0.6, 3)], "dice")
    assert "<run>" in Page(svg).text


def test_an_interval_lies_around_its_mean_on_the_scale_of_the_ticks():
    svg = intervals("Dice", [Interval("a", 0.5, 0.4, 0.7, 12), Interval("b", 0.6, 0.5, 0.8, 12, 1)], "dice")
    page = Page(svg)
    spans = [a for a in page.all("line") if "stroke-linecap" in a]
    means = [float(a["cx"]) for a in page.all("circle")]
    (a1, a2), (b1, b2) = [(float(a["x1"]), float(a["x2"])) for a in spans]
    unit = (a2 - a1) / 0.3
    assert means[0] - a1 == pytest.approx(0.1 * unit, abs=0.2)
    assert means[1] - means[0] == pytest.approx(0.1 * unit, abs=0.2)
    assert (b1, b2) == (pytest.approx(a1 + 0.1 * unit, abs=0.2), pytest.approx(a2 + 0.1 * unit, abs=0.2))
    assert "0.500 (0.400 to 0.700) n 12" in page.text


@pytest.mark.parametrize(("low", "high"), [(None, None), (0.1, None), (math.nan, 0.9)])
def test_a_mean_without_an_interval_says_so(low, high):
    page = Page(intervals("Dice", [Interval("a", 0.5, low, high, 1)], "dice"))
    assert "0.500 (no interval) n 1" in page.text
    assert not [a for a in page.all("line") if "stroke-linecap" in a]


def test_no_rows_no_chart():
    assert intervals("Dice", [], "dice") == ""
    assert intervals("Dice", [Interval("a", math.nan, None, None, 0)], "dice") == ""


def test_tick_labels_have_as_many_digits_as_the_step_needs():
    svg = curves("v", [Series("v", [(1, 0.0), (10, 1.25)])])
    labels = re.findall(r'text-anchor="end">([\d.]+)<', svg)
    assert labels == ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25"]


def test_intervals_of_a_curve_are_drawn_and_lie_within_the_axis():
    bars = [(0.0, 0.2, 0.9), (5.0, 0.4, 0.6)]
    svg = curves("Dice", [Series("box", [(0.0, 0.5), (5.0, 0.5)], bars=bars)], "noise")
    lines = [a for a in Page(svg).all("line") if a["class"] == "line s0"]
    assert [line["x1"] == line["x2"] for line in lines] == [True, True]
    lengths = [float(line["y1"]) - float(line["y2"]) for line in lines]
    assert lengths[0] / lengths[1] == pytest.approx(0.7 / 0.2, rel=0.01)
    middle = [y for _, y in points_of(svg, "line")]
    assert float(lines[1]["y1"]) > middle[1] > float(lines[1]["y2"])


def test_a_chart_of_its_own_brings_its_colours_along():
    svg = curves("Dice", [Series("box", [(0.0, 0.5), (5.0, 0.5)])], "noise")
    alone = standalone(svg)
    assert alone.startswith('<svg viewBox="0 0 480 260"')
    assert 'xmlns="http://www.w3.org/2000/svg"' in alone
    assert "--series-0:" in alone
    assert ".s0 { stroke: var(--series-0); }" in alone
    assert standalone("") == ""


def test_doublings_lie_evenly_apart():
    svg = curves(
        "dice", [Series("dice", [(1, 0.1), (2, 0.2), (4, 0.3), (16, 0.4)], dots=True)], doubling=True
    )
    xs = [x for x, _ in points_of(svg, "line")]
    steps = np.diff(xs)
    np.testing.assert_allclose(steps / steps[0], [1, 1, 2], rtol=2e-3)
    assert all(f">{n}<" in svg for n in (1, 2, 4, 16))
    assert ">8<" not in svg
    assert "NaN" not in curves("dice", [Series("dice", [(4, 0.3)])], doubling=True)
