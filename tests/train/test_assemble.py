"""Metadata of a delta that a stranger wrote: refused in a moment, before anything of their size is made."""

import time
from pathlib import Path

import pytest

from medvfm_jax import weights
from medvfm_jax.train.stored_delta import ForeignDelta, check_run, load_adapted
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts
from tests.cli.commands import save_random_delta

LABELS = {"background": 0, "a": 1, "b": 2}
TUNE = {"kind": "tune", "at": ".*"}
SLAB = {"kind": "slab", "depth": 3, "of": {"kind": "prompt_free", "classes": 3}}


@pytest.fixture(scope="module")
def delta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("delta")
    _, params = weights.load("lite-tiny-test")
    weights.save_own(folder / "mine.safetensors", params, "lite-tiny-test")
    file = folder / "mine.safetensors"
    return save_random_delta(folder / "delta.safetensors", "lite-tiny-test", file, LABELS, transform=SLAB)


def load(delta: Path):
    return load_adapted(delta, model=None, dtype="float32", file=delta.parent / "mine.safetensors")


def changed(delta, **metadata):
    arrays, own = artifacts.load_delta(delta)
    path = delta.with_name("changed.safetensors")
    artifacts.save_delta(path, arrays, own | metadata)
    return path


def test_an_honest_delta_is_loaded(delta):
    assert load(changed(delta)).adapted.spec.input_shape[0] == 3


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"transform": SLAB | {"depth": 3000}}, "at most 128"),
        ({"transform": SLAB | {"depth": 2**60}}, "at most 128"),
        ({"adapter": {"kind": "tune", "at": r"((([a-z0-9_/]+)+)+)+!"}}, "endlessly long"),
        ({"adapter": {"kind": "lora", "rank": 2**62, "alpha": 1, "at": r".*/qkv"}}, "delta|adapter"),
        ({"adapter": {"kind": "lora", "rank": 10**11, "alpha": 1, "at": r".*/qkv"}}, "delta|adapter"),
        ({"adapter": {"kind": "bottleneck", "width": -3, "at": r".*/attn"}}, "at least 1, not -3"),
        ({"adapter": {"kind": "bottleneck", "ratio": 1e18, "at": r".*/attn"}}, "delta|adapter"),
        ({"adapter": {"kind": "prompt_tokens", "n": 10**12, "at": r".*blocks_\d+"}}, "delta|adapter"),
        ({"adapter": {"kind": "context", "block": "x", "width": 10**12, "at": r".*/attn"}}, "context"),
        (
            {
                "adapter": {
                    "kind": "chain",
                    "parts": {f"p{n}": {"kind": "tune", "at": "x"} for n in range(99)},
                }
            },
            "99 parts",
        ),
        ({"input_shape": [4096, 4096, 4096, 1]}, "of patches, and its model takes none"),
        ({"base": "unetr", "input_shape": [4096, 4096, 4096, 1]}, "features of its voxels"),
        ({"classes": 7}, "expected 0 to 6"),
        ({"classes": 2, "labels": {"background": 0, "a": 1}}, "3 outputs and its metadata say 2"),
        ({"labels": {"background": 0, "a": 1, "b": 70000}}, "70000 .*expected 0 to 2"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "expected 0 to 2"),
    ],
)
def test_what_no_training_writes_is_refused_at_once(delta, metadata, words):
    path = changed(delta, **metadata)
    began = time.perf_counter()
    with pytest.raises(MedvfmError, match=words):
        load(path)
    assert time.perf_counter() - began < 20


def test_parts_of_an_adapter_in_another_order_are_of_another_run(tmp_path):
    a, b = {"kind": "tune", "at": "a"}, {"kind": "tune", "at": "b"}
    ours = {"kind": "chain", "parts": {"a": a, "b": b}}
    run = {"model": "m", "seed": 0, "resolved": {"adapter": ours}}
    metadata = {"adapter": {"kind": "chain", "parts": {"b": b, "a": a}}}
    with pytest.raises(ForeignDelta, match="its adapter is"):
        check_run(run, metadata, tmp_path / "delta.safetensors")
    assert check_run(run, {"adapter": ours}, tmp_path / "delta.safetensors")
