"""Expressions of the modules that were chosen."""

import re

from medvfm_jax.theory.runs.placement import _pattern


def test_a_pattern_has_the_numbers_that_are_there():
    paths = [f"e/layers_{i}/blocks_{j}/qkv" for i, j in ((1, 0), (1, 1), (10, 0))]
    pattern = _pattern("e/layers_*/blocks_*/qkv", paths)
    assert pattern == "e/layers_(1|10)/blocks_(0|1)/qkv"
    assert all(re.fullmatch(pattern, path) for path in paths)
    assert not re.fullmatch(_pattern("neck_*", ["neck_0", "neck_2"]), "neck_1")
    assert _pattern("a.b/proj", ["a.b/proj"]) == r"a\.b/proj"
