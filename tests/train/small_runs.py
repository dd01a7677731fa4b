"""The smallest run there is, and two ways to repeat it without paying again for what does not change."""

import functools
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from medvfm_jax.train import AdaptConfig, base_model

# Few shapes, a decoder on cached embeddings, the gradient of its last layers only.
SMALL = {
    "model": "sam-tiny-test",
    "adapter": "linear",
    "prompt": "box",
    "steps": 6,
    "batch_size": 2,
    "prompts_per_image": 2,
    "learning_rate": 0.01,
    "validate_every": 3,
    "checkpoint_every": 2,
    "val_fraction": 0.2,
    "test_fraction": 0.2,
}

_load_base = functools.lru_cache(base_model.load_base)


def small(data: Path, out: Path, **settings) -> AdaptConfig:
    """The settings of a small run."""
    return AdaptConfig(**{"data": str(data), "out": out} | SMALL | settings)


def resolved(folder: Path) -> dict[str, Any]:
    """What a run made of its settings: its split, among other things."""
    return json.loads((folder / "config.json").read_text())["resolved"]


@contextmanager
def programs_kept(folder: Path) -> Iterator[None]:
    """Keep compiled programs on disk, so that the second run with the same shapes only traces."""
    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


def build_models_once(patch: pytest.MonkeyPatch) -> None:
    """Keep the test models of earlier runs; building one takes a third of a small run."""
    for module in ("train.base_model", "train.assemble", "train.stored_delta", "predict.subject"):
        patch.setattr(importlib.import_module(f"medvfm_jax.{module}"), "load_base", _load_base)
