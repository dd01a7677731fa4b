"""Thousands of almost-checkpoints per reader: each is read, or refused in one sentence; nothing else comes out."""

import contextlib
import random
import time
import tracemalloc
import warnings
from typing import NamedTuple

import jax
import numpy as np
import pytest

from medvfm_jax.adapters import from_config
from medvfm_jax.models import catalog
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts, export
from medvfm_jax.weights.fitting import port_file
from medvfm_jax.weights.read import read_state
from medvfm_jax.weights.tree import flatten
from tests.weights import mutations
from tests.weights.test_load import random_params

MODEL = "vit-tiny-test"
PEAK = 64 << 20  # bytes; the inputs have less than 1 MB
PATIENCE = 20.0  # seconds of this process for one input
ADAPTER = {
    "kind": "chain",
    "parts": {
        "head": {"kind": "tune", "at": "head/kernel"},
        "lora": {"kind": "lora", "at": "image_encoder/blocks_\\d+/attn/qkv", "rank": 4, "alpha": None},
        "norms": {"kind": "scale_shift", "at": "image_encoder/norm"},
    },
}


class Outcome(NamedTuple):
    """Of one reader: inputs read and refused, the largest peak in bytes, the slowest input in seconds."""

    read: int
    refused: int
    peak: int
    slowest: float


def small_state() -> dict[str, np.ndarray]:
    """The smallest tensors of a checkpoint and their names; enough to be told a ViT, too few to be one."""
    state = export.torch_state(random_params(MODEL))
    chosen = sorted(state, key=lambda key: state[key].size)[:6]
    return {key: state[key] for key in chosen}


def made(reader, folder):
    """(suffix, generator of bytes, what reads the file) of a reader."""
    shapes = jax.eval_shape(catalog.build(MODEL).init, jax.random.key(0))

    def weights(path):
        state, _ = read_state(path)
        assert all(isinstance(value, np.ndarray) for value in state.values())
        if path.stat().st_size % 8 == 0:  # to say what does not fit takes longer than to read
            with contextlib.suppress(MedvfmError):
                port_file(path, shapes)

    def own(path):
        params = port_file(path, shapes)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))

    def delta(path):
        arrays, metadata = artifacts.load_delta(path)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(arrays))
        artifacts.require(metadata, ("base", "adapter"), path)
        if metadata["adapter"] is not None:
            from_config(metadata["adapter"])

    if reader == "torch":
        return ".pth", mutations.torch_file(small_state(), folder / "scratch.zip"), weights
    if reader == "safetensors":
        return ".safetensors", mutations.safetensors_file(small_state(), {"format": "pt"}), weights
    if reader == "onnx":
        return ".onnx", mutations.onnx_file(small_state()), weights
    if reader == "own":
        params = flatten(random_params(MODEL)["params"])
        return ".safetensors", mutations.safetensors_file(params, {"format": "medvfm-params"}), own
    sites = [f"lora:image_encoder/blocks_{block}/attn/qkv" for block in (0, 1)]
    arrays = {f"{site}:{part}": np.ones((4, 2), np.float32) for site in sites for part in "ab"}
    about = {"base": MODEL, "fingerprint": "0" * 64, "adapter": ADAPTER, "prompt": "box", "classes": 2}
    about |= {"labels": {"background": 0, "cell": 1}, "seed": 0, "preset": "lora", "channel_names": ["CT"]}
    return ".safetensors", mutations.delta_file(arrays, about), delta


def fuzz(reader, folder, count, seed) -> Outcome:
    """Every input in turn; one that breaks the rules stays in the folder and is named."""
    suffix, make, read = made(reader, folder)
    refused, peak, slowest = 0, 0, 0.0
    path = folder / f"input{suffix}"
    for index in range(count):
        path.unlink(missing_ok=True)  # of the one before, which may still be mapped
        path.write_bytes(make(random.Random(f"{reader} {seed} {index}")))
        which = f"{reader} {seed} {index}"
        tracemalloc.start()
        start = time.process_time()
        sentence = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read(path)
        except MedvfmError as error:
            sentence = str(error)
        except Exception as error:
            raise AssertionError(f"{which}: {type(error).__name__}: {error}") from error
        finally:
            seconds, peak_now = time.process_time() - start, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        slowest, peak = max(slowest, seconds), max(peak, peak_now)
        assert seconds < PATIENCE, f"{which}: {seconds:.1f} s"
        assert peak_now < PEAK, f"{which}: {peak_now} bytes"
        if sentence is not None:
            refused += 1
            assert len(sentence) < 8000
            assert "\x1b" not in sentence
    return Outcome(count - refused, refused, peak, slowest)


READERS = ("torch", "safetensors", "own", "onnx", "delta")


@pytest.mark.parametrize("reader", READERS)
def test_almost_checkpoints_are_read_or_refused(reader, tmp_path):
    found = fuzz(reader, tmp_path, 300, seed=0)
    print(reader, found)
    assert found.read + found.refused == 300
    assert found.refused >= 100  # the mutations reach the checks ...
    assert found.read >= 5  # ... and do not only make rubbish


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_almost_checkpoints_are_read_or_refused(reader, tmp_path):
    found = fuzz(reader, tmp_path, 20_000, seed=1)
    print(reader, found)
    assert found.refused >= 6_000
    assert found.read >= 300
