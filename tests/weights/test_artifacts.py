import errno
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import medvfm_jax
from medvfm_jax.fetch import FetchError
from medvfm_jax.weights import artifacts, safetensors_files
from medvfm_jax.weights.artifacts import BadDelta, WrongBaseWeights
from medvfm_jax.weights.torch_opcodes import BadCheckpoint

DELTA = {
    "decoder": {"mask_decoder/iou_token": {"embedding": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "lora": {
        "image_encoder/blocks_0/attn/qkv": {
            "a_q": np.ones((4, 2), np.float32),
            "b_q": np.zeros((2, 4), ml_dtypes.bfloat16),
        }
    },
}
METADATA = {"base": "lite-medsam", "fingerprint": "ab", "adapter": {"kind": "chain", "rank": 4, "x": None}}


def equal(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return left.dtype == right.dtype and np.array_equal(left, right)


@pytest.mark.parametrize("delta", [DELTA, DELTA["lora"], {"outer": DELTA}, {}])
def test_round_trip(tmp_path, delta):
    artifacts.save_delta(tmp_path / "d.safetensors", delta, METADATA)
    read, metadata = artifacts.load_delta(tmp_path / "d.safetensors")
    assert equal(read, delta)
    assert metadata == {**METADATA, "medvfm_jax": medvfm_jax.__version__}


def test_keys_name_chain_path_and_array(tmp_path):
    artifacts.save_delta(tmp_path / "d.safetensors", DELTA, {})
    arrays, _ = safetensors_files.read(tmp_path / "d.safetensors")
    assert "lora:image_encoder/blocks_0/attn/qkv:a_q" in arrays


def test_jax_and_transposed_arrays_are_stored_as_they_look(tmp_path):
    value = np.arange(6, dtype=np.float32).reshape(2, 3).T
    artifacts.save_delta(tmp_path / "d.safetensors", {"m": {"a": value, "b": jnp.asarray(value)}}, {})
    read, _ = artifacts.load_delta(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(read["m"]["a"], value)
    np.testing.assert_array_equal(read["m"]["b"], value)


@pytest.mark.parametrize("delta", [{"a:b": {"c": np.ones(2)}}, {"a": np.ones(2)}, np.ones(2)])
def test_what_is_no_delta_is_refused(tmp_path, delta):
    with pytest.raises(BadDelta):
        artifacts.save_delta(tmp_path / "d.safetensors", delta, {})
    assert not (tmp_path / "d.safetensors").exists()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(2)}, path)
    with pytest.raises(BadDelta, match="no delta"):
        artifacts.load_delta(path)
    save_file({"a": np.ones(2)}, path, {"format": artifacts.FORMAT})
    with pytest.raises(BadCheckpoint, match="metadata"):
        artifacts.load_delta(path)
    save_file({"a": np.ones(2)}, path, {"format": artifacts.FORMAT, "medvfm": "{}"})
    with pytest.raises(BadDelta, match="'a' is not"):
        artifacts.load_delta(path)
    with pytest.raises(BadCheckpoint):
        artifacts.load_delta(tmp_path / "missing.safetensors")


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "d.safetensors"
    artifacts.save_delta(path, DELTA, METADATA)
    whole = path.read_bytes()
    for length in range(0, len(whole), 29):
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            artifacts.load_delta(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "d.safetensors"
    artifacts.save_delta(path, DELTA, METADATA)
    before = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_files, "save_file", full)
    with pytest.raises(FetchError, match="disk is full"):
        artifacts.save_delta(path, {}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def test_fingerprint_sees_every_change_and_nothing_else():
    params = {"params": {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.zeros(0)}}
    base = artifacts.fingerprint(params)
    kernel = params["params"]["a"]["kernel"]
    same = {"params": {"b": np.zeros(0), "a": {"kernel": jnp.asarray(kernel)}}}
    assert artifacts.fingerprint(same) == base
    for change in (
        {"a": {"kernel": kernel + np.float32(1e-6)}, "b": np.zeros(0)},
        {"a": {"kernel": kernel.reshape(3, 2)}, "b": np.zeros(0)},
        {"a": {"kernel": kernel.astype(np.float64)}, "b": np.zeros(0)},
        {"a": {"kernels": kernel}, "b": np.zeros(0)},
        {"a": {"kernel": kernel}},
    ):
        assert artifacts.fingerprint({"params": change}) != base


def test_check_base():
    params = {"params": {"a": np.ones(3)}}
    artifacts.check_base({"fingerprint": artifacts.fingerprint(params)}, params)
    with pytest.raises(WrongBaseWeights, match="made for 'sam-b'"):
        artifacts.check_base({"base": "sam-b", "fingerprint": "00"}, params)
    with pytest.raises(WrongBaseWeights, match="does not say"):
        artifacts.check_base({}, params)


TEXT = json.dumps(METADATA)


def stored(path, arrays, text=TEXT):
    save_file(arrays, path, {"format": artifacts.FORMAT, "medvfm": text})
    return path


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([1, np.nan], np.float32), "holds NaN or infinite values"),
        (np.array([1, -np.inf], np.float32), "holds NaN or infinite values"),
        (np.array([1e300]), "holds values too large for float32"),
        (np.ones(2, np.int32), "holds int32 where floating-point"),
        (np.ones(2, bool), "holds bool where floating-point"),
    ],
)
def test_arrays_that_no_training_makes_are_neither_read_nor_written(tmp_path, value, words):
    path = stored(tmp_path / "d.safetensors", {"m:a": value})
    with pytest.raises(BadDelta, match=f"m:a {words}"):
        artifacts.load_delta(path)
    with pytest.raises(BadDelta, match=f"m:a {words}"):
        artifacts.save_delta(tmp_path / "new.safetensors", {"m": {"a": value}}, METADATA)
    assert not (tmp_path / "new.safetensors").exists()


def test_an_array_within_an_array_is_refused(tmp_path):
    one = np.ones(2, np.float32)
    with pytest.raises(BadDelta, match="lies within another array"):
        artifacts.load_delta(stored(tmp_path / "d.safetensors", {"m:a": one, "m:a:b": one}))


@pytest.mark.parametrize(
    "text",
    ["[1]", "null", "7", "{", '{"a":' * 100_000, json.dumps({"classes": "2"}), json.dumps({"classes": True}),
     json.dumps({"prompt": ["box"]}), json.dumps({"labels": {"a": "b"}}), json.dumps({"adapter": [1]}),
     json.dumps({"seed": 2**70}), json.dumps({"base": None})],
)  # fmt: skip
def test_metadata_that_no_training_writes_are_refused(tmp_path, text):
    with pytest.raises((BadDelta, BadCheckpoint), match="metadata of the delta"):
        artifacts.load_delta(stored(tmp_path / "d.safetensors", {"m:a": np.ones(2, np.float32)}, text))
