import functools
import json

import numpy as np
import pytest

from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.export import torch_state
from medvfm_jax.weights.peft import BadPeft, CannotExport, LowRank, load_peft, save_peft
from medvfm_jax.weights.torch_opcodes import BadCheckpoint
from medvfm_jax.weights.tree import flatten
from tests.weights.test_load import random_params as fresh_params

random_params = functools.cache(fresh_params)  # nobody changes them
rng = np.random.default_rng(0)
QKV = "image_encoder/blocks_0/attn/qkv"
LIN1 = "image_encoder/blocks_1/mlp/lin1"


def update(params, path, rank, scale):
    node = params["params"]
    for name in path.split("/"):
        node = node[name]
    fan_in, fan_out = node["kernel"].shape
    a, b = rng.normal(size=(fan_in, rank)), rng.normal(size=(rank, fan_out))
    return LowRank(a.astype(np.float32), b.astype(np.float32), scale), node["kernel"]


def test_peft_formula_gives_the_merged_weight(tmp_path):
    """W + lora_alpha / r * B A, with the config's own numbers, is the transposed merged kernel."""
    params = random_params("sam-tiny-test")
    (first, kernel), (second, other) = update(params, QKV, 2, 0.5), update(params, LIN1, 3, 1.0)
    modules = save_peft(tmp_path / "peft", {QKV: first, LIN1: second}, params, "sam-tiny-test")
    assert modules == ["image_encoder.blocks.0.attn.qkv", "image_encoder.blocks.1.mlp.lin1"]
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors, _ = safetensors_files.read(tmp_path / "peft" / "adapter_model.safetensors")
    state = torch_state(params)
    for module, low, jax_kernel in zip(modules, (first, second), (kernel, other)):
        rank = config["rank_pattern"].get(module, config["r"])
        alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
        a = tensors[f"base_model.model.{module}.lora_A.weight"]
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        assert a.shape[0] == b.shape[1] == rank
        merged = state[f"{module}.weight"] + alpha / rank * b @ a
        np.testing.assert_allclose(merged, (jax_kernel + low.scale * low.a @ low.b).T, rtol=1e-5, atol=1e-5)
    assert config["target_modules"] == modules
    assert config["modules_to_save"] is None


def test_wholly_trained_modules_are_saved_whole(tmp_path):
    params = random_params("sam-tiny-test")
    low, _ = update(params, QKV, 2, 1.0)
    save_peft(tmp_path, {QKV: low}, params, "x", ["mask_decoder"])
    tensors, _ = safetensors_files.read(tmp_path / "adapter_model.safetensors")
    saved = {k.removeprefix("base_model.model.") for k in tensors if "lora" not in k}
    assert saved == {key for key in torch_state(params) if key.startswith("mask_decoder.")}
    with pytest.raises(CannotExport, match="both a low-rank update and a trained whole"):
        save_peft(tmp_path, {QKV: low}, params, "x", ["image_encoder"])


def test_what_peft_cannot_hold(tmp_path):
    params = random_params("sam-tiny-test")
    low = LowRank(np.ones((3, 1)), np.ones((1, 3)), 1.0)
    for path in ("image_encoder/patch_embed/proj", "no/such/module"):
        with pytest.raises(CannotExport, match=path):
            save_peft(tmp_path / "p", {path: low}, params, "x")
    with pytest.raises(CannotExport, match="no low-rank update"):
        save_peft(tmp_path / "p", {}, params, "x")
    assert not (tmp_path / "p").exists()


def test_what_was_written_is_read_again(tmp_path):
    params = random_params("sam-tiny-test")
    written = {QKV: update(params, QKV, 2, 0.5)[0], LIN1: update(params, LIN1, 3, 1.0)[0]}
    save_peft(tmp_path, written, params, "sam-tiny-test")
    read = load_peft(tmp_path, params).updates
    assert read.keys() == written.keys()
    for path, low in written.items():
        np.testing.assert_array_equal(read[path].a, low.a)
        np.testing.assert_array_equal(read[path].b, low.b)
        assert read[path].scale == pytest.approx(low.scale)


def test_rank_stabilised_scale_of_a_peft_file(tmp_path):
    """use_rslora: lora_alpha / sqrt(r); 3 / sqrt(9) = 1 where lora_alpha / r would be 1/3."""
    params = random_params("sam-tiny-test")
    save_peft(tmp_path, {QKV: update(params, QKV, 9, 1 / 3)[0]}, params, "sam-tiny-test")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    assert load_peft(tmp_path, params).updates[QKV].scale == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peft_type": "IA3"}, "describes no LoRA"),
        ({"lora_alpha": "much"}, "describes no LoRA"),
        ({"alpha_pattern": ["x"]}, "no table of numbers"),
        ({"use_dora": True}, "DoRA"),
        ({"r": 8}, "rank 2 and the configuration says 8"),
        ({"r": 0}, "r is no rank"),
        ({"rank_pattern": {"qkv": 3}}, "rank 2 and the configuration says 3"),
        ({"rank_pattern": {"qkv": 2.5}}, "no table of ranks"),
        ({"alpha_pattern": {"qkv": True}}, "no table of numbers"),
        ({"alpha_pattern": {"((([a-z.]+)+)+)+!": 1}}, "endlessly"),
        ({"alpha_pattern": {"(": 1}}, "cannot be used as a pattern"),
        ({"lora_alpha": 1e300}, "describes no LoRA"),
        ({"target_modules": ["nothing"]}, "none of the target_modules"),
        ({"target_modules": r".*\.lin1"}, "none of the target_modules"),
        ({"target_modules": ["qkv"]}, r"blocks\.1\.attn\.qkv among the target_modules"),
        ({"target_modules": None}, "names no modules"),
        ({"bias": "all"}, "biases were trained"),
        ({"modules_to_save": ["neck"]}, r"6 arrays of the modules_to_save \(neck\) are not in the file"),
        ({"modules_to_save": "mask_decoder"}, "no list of names"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"some_later_variant": {"k": 1}}, "some_later_variant is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"use_rslora": "false"}, "true or false was expected"),
    ],
)
def test_a_peft_configuration_that_cannot_be_read(tmp_path, change, sentence):
    params = random_params("sam-tiny-test")
    save_peft(tmp_path, {QKV: update(params, QKV, 2, 1.0)[0]}, params, "sam-tiny-test")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadPeft, match=sentence):
        load_peft(tmp_path, params)


def test_a_peft_file_of_another_model_or_with_more_than_updates(tmp_path):
    params = random_params("sam-tiny-test")
    low, _ = update(params, QKV, 2, 1.0)
    save_peft(tmp_path / "whole", {QKV: low}, params, "x", ["mask_decoder"])
    file = tmp_path / "whole" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": None}))
    with pytest.raises(BadPeft, match="did it train more"):
        load_peft(tmp_path / "whole", params)
    save_peft(tmp_path / "wide", {QKV: low._replace(a=np.ones((3, 2), np.float32))}, params, "x")
    with pytest.raises(BadPeft, match=r"\(2, 3\)"):
        load_peft(tmp_path / "wide", params)
    with pytest.raises(BadPeft, match="cannot be read"):
        load_peft(tmp_path / "nowhere", params)


def test_whole_modules_come_back_and_have_to_be_complete(tmp_path):
    params = random_params("sam-tiny-test")
    low, _ = update(params, QKV, 2, 1.0)
    for names in ("original", "transformers"):
        save_peft(tmp_path / names, {QKV: low}, params, "x", ["mask_decoder"], names)
        saved = load_peft(tmp_path / names, params).saved
        expected = {f"mask_decoder/{k}": v for k, v in flatten(params["params"]["mask_decoder"]).items()}
        assert saved.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(saved[path], value)
    file = tmp_path / "original" / "adapter_model.safetensors"
    tensors, _ = safetensors_files.read(file)
    key = "base_model.model.mask_decoder.iou_token.weight"
    safetensors_files.write(file, {k: v for k, v in tensors.items() if k != key}, {"format": "pt"})
    with pytest.raises(BadPeft, match=r"1 array of the modules_to_save .*mask_decoder\.iou_token\.weight"):
        load_peft(tmp_path / "original", params)
    safetensors_files.write(file, tensors | {key: np.ones((2, 32), np.float32)}, {"format": "pt"})
    with pytest.raises(BadPeft, match=r"iou_token\.weight has shape \(2, 32\)"):
        load_peft(tmp_path / "original", params)


def test_transformers_has_no_names_for_a_tiny_vit(tmp_path):
    params = random_params("lite-tiny-test")
    path = "image_encoder/layers_1/blocks_0/attn/qkv"
    with pytest.raises(CannotExport, match="transformers has no names"):
        save_peft(tmp_path, {path: update(params, path, 2, 1.0)[0]}, params, "x", names="transformers")


A, B = (f"base_model.model.image_encoder.blocks.0.attn.qkv.lora_{end}.weight" for end in "AB")
BARE = A.removeprefix("base_model.model.")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a, b: {A: a * np.nan, B: b}, "holds NaN"),
        (lambda a, b: {A: a, B: b + np.inf}, "holds NaN or infinite"),
        (lambda a, b: {A: a.astype(np.int64), B: b}, "holds int64"),
        (lambda a, b: {A: a > 0, B: b}, "holds bool"),
        (lambda a, b: {A: a.astype(np.float64) * 1e300, B: b}, "too large for float32"),
        (lambda a, b: {A: a[:0], B: b[:, :0]}, "does not fit a kernel"),
        (lambda a, b: {A: a[0], B: b}, "has two axes"),
        (lambda a, b: {A: np.stack([a] * 3), B: b}, "has two axes"),
        (lambda a, b: {A: a, BARE: a * 100, B: b}, "are both image_encoder"),
        (lambda a, b: {A: a}, "has no lora_B"),
        (lambda a, b: {B: b}, "has no lora_A"),
        (lambda a, b: {}, "no low-rank update"),
    ],
)
def test_arrays_of_a_peft_file_are_checked_like_those_of_every_other_source(tmp_path, change, sentence):
    params = random_params("sam-tiny-test")
    save_peft(tmp_path, {QKV: update(params, QKV, 2, 1.0)[0]}, params, "sam-tiny-test")
    file = tmp_path / "adapter_model.safetensors"
    tensors, _ = safetensors_files.read(file)
    safetensors_files.write(file, change(tensors[A], tensors[B]), {"format": "pt"})
    with pytest.raises((BadPeft, BadCheckpoint), match=sentence):
        load_peft(tmp_path, params)


def test_keys_of_alpha_pattern_are_ends_of_names_or_patterns_as_in_peft(tmp_path):
    """PEFT's get_pattern_key: the first key that fits a name or its end after a dot; 32 / 2 = 16, 8 / 2 = 4."""
    params = random_params("sam-tiny-test")
    written = {QKV: update(params, QKV, 2, 0.5)[0], LIN1: update(params, LIN1, 2, 0.5)[0]}
    save_peft(tmp_path, written, params, "sam-tiny-test")
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | {
        "alpha_pattern": {"kv": 64, "qkv": 32, r"blocks\.\d\.attn\.qkv": 1, r"mlp\.lin\d": 8},
        "target_modules": r".*(blocks\.0\.attn\.qkv|blocks\.1\.mlp\.lin1)",
    }
    file.write_text(json.dumps(config))
    read = load_peft(tmp_path, params).updates
    assert (read[QKV].scale, read[LIN1].scale) == (16.0, 4.0)


@pytest.mark.parametrize(
    ("layers", "pattern", "told"),
    [([0], None, ""), (0, "blocks", ""), ([1], None, "not of one adapter"), ([0, 1], ["blocks"], "")],
)
def test_layers_that_are_picked_by_number_are_those_of_the_arrays(tmp_path, layers, pattern, told):
    """Two layers of which the arrays are of the first: fine for [0], of another adapter or incomplete otherwise."""
    params = random_params("sam-tiny-test")
    low, _ = update(params, QKV, 2, 1.0)
    save_peft(tmp_path, {QKV: low}, params, "x")
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text()) | {"target_modules": ["qkv"]}
    file.write_text(json.dumps(config | {"layers_to_transform": layers, "layers_pattern": pattern}))
    if layers in ([0], 0):
        assert set(load_peft(tmp_path, params).updates) == {QKV}
    else:
        with pytest.raises(BadPeft, match=told or "incomplete"):
            load_peft(tmp_path, params)


@pytest.mark.parametrize(
    "wrong", [{"layers_to_transform": ["a"]}, {"layers_to_transform": [0], "layers_pattern": "a("}]
)
def test_layers_that_are_no_numbers_or_lie_behind_no_name(tmp_path, wrong):
    params = random_params("sam-tiny-test")
    low, _ = update(params, QKV, 2, 1.0)
    save_peft(tmp_path, {QKV: low}, params, "x")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(BadPeft, match="is no list of"):
        load_peft(tmp_path, params)
