import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.torch_opcodes import BadCheckpoint

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, tail=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + tail)
    return path


def test_the_same_arrays_in_the_same_order_as_the_library_reads(tmp_path):
    arrays = {
        "b": np.ones((2, 3), np.float16),
        "a": np.array(3, np.float32),
        "z": np.zeros((0, 4)),
        "c": np.arange(5, dtype=np.int8),
        "d": np.full(3, 1.5, ml_dtypes.bfloat16),
        "e": np.array([True, False]),
        "u": np.array([1, 65535], np.uint16),
    }
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, {"k": "v"})
    with safe_open(path, framework="numpy") as file:
        expected = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    read, metadata = safetensors_files.read(path)
    assert metadata == safetensors_files.read_metadata(path) == {"k": "v"}
    assert list(read) == list(expected)
    for key, value in expected.items():
        assert (read[key].dtype, read[key].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(read[key], value)
        assert read[key].flags.writeable


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "F4", "C64", "f32", 7, None, ["F32"]])
def test_element_types_that_no_model_uses_are_a_sentence(tmp_path, name):
    path = write(tmp_path / "x.safetensors", {"w": ENTRY | {"dtype": name}})
    with pytest.raises(BadCheckpoint, match=r"w has element type .*; save it as F32"):
        safetensors_files.read(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"w": ENTRY | {"shape": [2**62, 2**62]}}, "absurdly large"),
        ({"w": ENTRY | {"shape": [0, 2**62]}}, "absurdly large"),
        ({"w": ENTRY | {"shape": [1] * 33}}, "33 axes"),
        ({"w": ENTRY | {"shape": [-2]}}, "an axis of -2"),
        ({"w": ENTRY | {"shape": [True]}}, "an axis of True"),
        ({"w": ENTRY | {"shape": 2}}, "no list"),
        ({"w": ENTRY | {"data_offsets": [0, 4]}}, "does not lie where"),
        ({"w": ENTRY, "v": ENTRY}, "does not lie where"),
        ({"w": ENTRY | {"data_offsets": [0]}}, "not two numbers"),
        ({"w": 7}, "not described by"),
        ({}, "the file has 8 for them"),
        ([1], "not a JSON object"),
        ({"w": ENTRY, "__metadata__": {"a": 1}}, "metadata are not words"),
        (b'{"w":1,"w":2}', "'w' is there twice"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_headers_that_lie(tmp_path, header, words):
    with pytest.raises(BadCheckpoint, match=words):
        safetensors_files.read(write(tmp_path / "x.safetensors", header))


def test_lengths_that_lie(tmp_path):
    for length, words in ((2**63, "at most"), (1000, "ends within its header"), (3, "cannot be read")):
        with pytest.raises(BadCheckpoint, match=words):
            safetensors_files.read(write(tmp_path / "x.safetensors", {"w": ENTRY}, length=length))
        with pytest.raises(BadCheckpoint, match=words):
            safetensors_files.read_metadata(tmp_path / "x.safetensors")
