import re
import time

import pytest

from medvfm_jax import patterns

PATH = "mask_decoder/transformer/layers_0/cross_attn_token_to_image/q_proj/kernel"


@pytest.mark.parametrize(
    "pattern",
    [
        r"((([a-z0-9_/]+)+)+)+!",
        "(a|a)*!",
        "(x+x+)+y",
        ".*.*.*.*.*.*!",
        "a?" * 40 + "a" * 40,
        "(a*)*",
        "(?:){4000000000}",
        r"(.)\1",
        "(" * 5000,
        "x{99999999999}",
        "x" * (patterns.LONGEST_PATTERN + 1),
        "[",
    ],
)
def test_what_may_take_endlessly_long_is_refused_at_once(pattern):
    began = time.perf_counter()
    with pytest.raises(patterns.BadPattern):
        patterns.matcher(pattern, 80)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?!.*proj/bias).*",
        r"mask_decoder/(.*/)?(qkv|q_proj|lin\d?)/(kernel|bias)",
        r".*/layers_\d+/.*",
        r"(?:mask_decoder|image_encoder)/.*?/q_proj/.*",
        "|".join(re.escape(f"{PATH}{n}") for n in range(200)),
        ".*.*.*.*!",  # the worst that is taken
    ],
)
def test_ordinary_patterns_match_as_ever(pattern):
    for path in (PATH, f"{PATH}7", "image_encoder/neck/q_proj/bias"):
        assert bool(patterns.matcher(pattern, 80).fullmatch(path)) == bool(re.fullmatch(pattern, path))
