"""Grid files: what they mean, and every way in which they can be wrong."""

import json

import pytest

from medvfm_jax.settings import BadConfig
from medvfm_jax.settings.analyze import AblateConfig
from medvfm_jax.settings.analyze.ablate import read_grid

GRID = {
    "settings": {"data": "data", "model": "lite-medsam", "steps": 4},
    "vary": {"adapter": ["lora", "decoder"], "set": [["lora.rank=2"], []]},
    "seeds": [0, 3],
    "tools": ["size"],
}


def config(tmp_path, text):
    path = tmp_path / "grid.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return AblateConfig(grid=path, out=tmp_path / "out")


def test_every_combination_is_a_cell_with_every_seed(tmp_path):
    grid = read_grid(config(tmp_path, GRID))
    assert [cell.name for cell in grid.cells] == [
        "adapter=lora,set=lora.rank=2",
        "adapter=lora,set=",
        "adapter=decoder,set=lora.rank=2",
        "adapter=decoder,set=",
    ]
    first = grid.cells[0].configs
    assert [one.seed for one in first] == [0, 3]
    assert first[0].adapter == "lora"
    assert first[0].set == ("lora.rank=2",)
    assert first[0].steps == 4
    assert first[0].validate_every == 0
    folders = {one.out for cell in grid.cells for one in cell.configs}
    assert len(folders) == 8
    assert all(folder.is_relative_to(tmp_path / "out") for folder in folders)
    assert grid.tools == ("size",)


def test_a_grid_without_variation_is_one_cell(tmp_path):
    grid = read_grid(config(tmp_path, {"settings": {"data": "data"}}))
    assert [cell.name for cell in grid.cells] == ["only"]
    assert grid.seeds == (0,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"datas": "x"}}, "no setting of adapt"),
        ({"vary": {"adaptor": ["lora"]}}, "nearest is 'adapter'"),
        ({"vary": {"adapter": []}}, "one or more values"),
        ({"vary": {"adapter": "lora"}}, "one or more values"),
        ({"vary": {"adapter": ["lora", "lora"]}}, "twice"),
        ({"vary": {"steps": [1, 2]}}, "leave one out"),
        ({"vary": {"seed": [1, 2]}}, "set for every run"),
        ({"settings": {"data": "x", "out": "y"}}, "set for every run"),
        ({"settings": {"data": "x", "steps": 0}}, "steps is 0"),
        ({"settings": {"data": "x", "steps": "many"}}, "another kind"),
        ({"settings": {"steps": 3}}, "another kind"),
        ({"settings": {"data": 3}}, "expected a text"),
        ({"settings": {"data": "x", "steps": 1.0}}, "expected a whole number"),
        ({"settings": {"data": "x", "steps": True}}, "expected a whole number"),
        ({"settings": {"data": "x", "train_cases": 1.5}}, "expected a whole number or null"),
        ({"settings": {"data": "x", "learning_rate": "1"}}, "expected a number or null"),
        ({"settings": {"data": "x", "set": "lora.rank=1"}, "vary": {}}, "expected a list, each a text"),
        ({"settings": {"data": "x", "offline": "no"}}, "expected true or false"),
        ({"vary": {"model": [{"a": 1}]}, "settings": {"data": "x"}}, "expected a text"),
        ({"seeds": [0.5]}, "whole numbers"),
        ({"seeds": []}, "one or more values"),
        ({"sedes": [1]}, "nearest is 'seeds'"),
        ({"vary": ["adapter"]}, "names of settings"),
    ],
)
def test_a_wrong_grid_is_one_sentence(tmp_path, change, said):
    with pytest.raises(BadConfig, match=said):
        read_grid(config(tmp_path, GRID | change))


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ("[]", "no grid"), ('{"settings": 1}', "no grid")]
)
def test_a_file_that_is_no_grid(tmp_path, text, said):
    with pytest.raises(BadConfig, match=said):
        read_grid(config(tmp_path, text))
    with pytest.raises(BadConfig, match="cannot be read"):
        read_grid(AblateConfig(grid=tmp_path / "nothing.json"))
