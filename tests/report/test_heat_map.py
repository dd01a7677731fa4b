"""A grid of numbers as a picture: every value has its square, the largest is darkest, no number is a cross."""

import math
import re
from xml.etree import ElementTree

import pytest

from medvfm_jax.report.charts import standalone
from medvfm_jax.report.heat_map import heat_map

PLACES = [-1.0, 0.0, 1.0]


def darkness(svg):
    found = re.findall(r'fill-opacity="([\d.]+)"><title>(.*?)</title>', svg)
    return {name.split(": ")[0]: float(dark) for dark, name in found if name}


def test_every_value_has_a_square_and_the_largest_is_darkest():
    values = [[1.0, 2.0, 3.0], [4.0, math.inf, 6.0], [7.0, 8.0, 9.0]]
    svg = heat_map("Loss <a>", PLACES, values, "along", "up", "loss")
    ElementTree.fromstring(standalone(svg))
    found = darkness(svg)
    assert len(found) == 8
    assert found["-1, -1"] == 0.05
    assert found["1, 1"] == 0.95
    assert found["1, -1"] == pytest.approx(0.05 + 0.9 * 2 / 8)
    assert "0, 0: inf" in svg
    assert svg.count("<path") == 1


def test_values_that_are_all_alike_are_drawn():
    assert set(darkness(heat_map("t", PLACES, [[2.0] * 3] * 3, "x", "y", "v")).values()) == {0.05}
