"""Which reader a file gets, what frameworks put around a state dict, and safetensors in shards."""

import json

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.fetch.cache import FetchError
from medvfm_jax.models import catalog
from medvfm_jax.weights import export, registry, safetensors_files
from medvfm_jax.weights.read import read_state
from medvfm_jax.weights.torch_opcodes import BadCheckpoint
from tests.weights import torch_files

MODEL = "vit-tiny-test"


@pytest.fixture(scope="module")
def state():
    _, params = weights.load(MODEL)
    return export.torch_state(params)


@pytest.fixture
def shards(state, tmp_path):
    """An index of two shards, as huggingface_hub names them."""
    keys = sorted(state)
    parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    place = {}
    for i, part in enumerate(parts):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors_files.write(tmp_path / name, {key: state[key] for key in part}, {"format": "pt"})
        place |= dict.fromkeys(part, name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))
    return index


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])


def test_shards_are_one_checkpoint(state, shards):
    read, metadata = read_state(shards)
    same(read, state)
    assert metadata == {}
    params = weights.load(MODEL, shards)[1]
    jax.tree.map(np.testing.assert_array_equal, params, weights.load(MODEL)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index["weight_map"].popitem(), "the index does not have it there"),
        (lambda index: index["weight_map"].update(more="model-00001-of-00002.safetensors"), "has it there"),
        (lambda index: index["weight_map"].update(more="model-00003-of-00002.safetensors"), "no such file"),
        (
            lambda index: index["weight_map"].update(more="../secret.safetensors"),
            "beside the index",
        ),
        (lambda index: index["weight_map"].update(more="weights.pth"), "beside the index"),
        (lambda index: index["weight_map"].update(more=3), "holds no"),
        (lambda index: index.pop("weight_map"), "holds no"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_one_sentence(shards, change, words):
    index = json.loads(shards.read_text())
    change(index)
    shards.write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=words):
        read_state(shards)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"weight_map": {}}'])
def test_a_damaged_index_is_one_sentence(tmp_path, text):
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(BadCheckpoint, match=r"m\.safetensors\.index\.json"):
        read_state(path)


def test_an_index_alone_is_not_taken_into_the_cache(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FetchError, match="medvfm weights convert"):
        registry.fetch("sam-b", source=shards)


@pytest.mark.parametrize("holder", ["model.", "net.", "model.model.", "module.model."])
def test_the_name_of_a_holder_before_every_key_is_taken_off(state, tmp_path, holder):
    """A checkpoint of PyTorch Lightning: the state dict among other entries, every key below "model."."""
    held = {holder + key: value for key, value in state.items()}
    path = tmp_path / "last.ckpt"
    around = {"epoch": 3, "pytorch-lightning_version": "2.4.0", "loops": {}}
    torch_files.save(path, held, lambda tensors: around | {"state_dict": tensors})
    same(read_state(path)[0], state)
    safetensors_files.write(tmp_path / "held.safetensors", held, {})
    same(read_state(tmp_path / "held.safetensors")[0], state)
    assert catalog.MODELS[MODEL].tables


def test_a_name_that_stands_before_some_keys_only_stays(state, tmp_path):
    held = {f"model.{key}": value for key, value in state.items()} | {
        "criterion.weight": np.ones(2, np.float32)
    }
    safetensors_files.write(tmp_path / "held.safetensors", held, {})
    assert read_state(tmp_path / "held.safetensors")[0].keys() == held.keys()
    with pytest.raises(weights.PortError, match=r"criterion\.weight"):
        weights.load(MODEL, tmp_path / "held.safetensors")
