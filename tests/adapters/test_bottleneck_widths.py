"""Widths and ratios that no bottleneck can have, and numbers that no option is."""

import pytest

from medvfm_jax.adapters.bottleneck import bottleneck
from medvfm_jax.adapters.compacter import compacter
from medvfm_jax.adapters.depth_attention import depth_attention
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.adapters.multiscale_bottleneck import multiscale_bottleneck
from medvfm_jax.adapters.option_values import typed
from medvfm_jax.adapters.shared_bottleneck import shared_bottleneck
from medvfm_jax.adapters.volume_bottleneck import volume_bottleneck

MAKERS = {
    "bottleneck": lambda ratio: bottleneck("x", ratio=ratio),
    "compacter": lambda ratio: compacter("x", ratio=ratio),
    "depth_attention": lambda ratio: depth_attention("x", 8, ratio=ratio),
    "multiscale_bottleneck": lambda ratio: multiscale_bottleneck("x", ratio=ratio),
    "shared_bottleneck": lambda ratio: shared_bottleneck("x", ratio=ratio),
    "volume_bottleneck": lambda ratio: volume_bottleneck("x", ratio=ratio),
}


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_ratio_that_gives_no_width_is_refused(kind, ratio):
    with pytest.raises(BadAdapterConfig, match=f"{kind}: ratio must be above 0, not {ratio}"):
        MAKERS[kind](ratio)


@pytest.mark.parametrize("kind", [bottleneck, compacter])
def test_a_width_below_one_is_refused(kind):
    with pytest.raises(BadAdapterConfig, match="width must be at least 1, not 0"):
        kind("x", width=0)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1_0", "\u0663"])
def test_text_that_is_no_finite_number_is_refused(text):
    for kind in (int, float):
        with pytest.raises(BadAdapterConfig, match="must be a"):
            typed(text, kind, "option")
    assert typed("-1e-3", float, "option") == -0.001
    assert typed("12", int, "option") == 12
