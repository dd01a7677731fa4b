"""Predicted against measured places: sums over a place's kernels, and the verdict on the order."""

import json

import pytest

from experiments.covering_tests import ROOT
from experiments.placement import PLACES, RESULTS, Plan, markdown, table_of
from medvfm_jax.theory import Place, PlacementResult

PATHS = {
    "attention": ("image_encoder/layers_1/blocks_0/attn/qkv/kernel",),
    "mlp": tuple(f"image_encoder/layers_1/blocks_0/mlp/fc{i}/kernel" for i in (1, 2)),
    "decoder": ("mask_decoder/transformer/layers_0/self_attn/q_proj/kernel",),
}


def a_place(path, gain, trained, fisher):
    return Place(path, 1, 100, trained, fisher, 0.3, 0.5 * fisher, gain, 2.0, 1.5, 3.0)


def test_a_tool_agrees_that_has_the_measured_order():
    gains = {"attention": 2.0, "mlp": 3.0, "decoder": 1.0}
    places = [
        a_place(path, gains[name], 100 if name == "decoder" else 1000, {"decoder": 9.0}.get(name, 1.0))
        for name, paths in PATHS.items()
        for path in paths
    ]
    places.append(a_place("image_encoder/neck_0/kernel", 99.0, 1, 99.0))
    found = PlacementResult("lite-medsam", "dsb2018", 8, 1.0, tuple(places), (), ())
    dice = {"attention": 0.94, "mlp": 0.96, "decoder": 0.92}
    rows = {
        f"nuclei: lora @ {name}": {"summary": [{"metric": "dice", "mean": d, "low": d, "high": d}]}
        for name, d in dice.items()
    }
    table = table_of(Plan("x"), found, {"rows": rows})
    assert table["order"] == ["mlp", "attention", "decoder"]
    assert table["places"]["mlp"]["gain"] == 6
    assert table["places"]["mlp"]["fisher_error"] == pytest.approx(0.3 * 2**0.5)
    assert table["places"]["mlp"]["gain per number"] == pytest.approx(6 / 2000)
    assert table["agrees"] == {"gain": True, "gain per number": False, "fisher": False, "signal": False}
    assert "gain: yes" in markdown(table)


def test_the_documentation_has_the_figures_of_the_file():
    table = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(table["places"]) == set(PLACES)
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    for line in markdown(table).splitlines():
        assert line in page
