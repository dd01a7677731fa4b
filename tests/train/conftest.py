"""Whole runs on small phantoms, made once, and compiled programs shared between them."""

import functools
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.train import AdaptConfig, adapt, assemble

# The cheapest run there is: few shapes, a decoder on cached embeddings, the gradient of its last layers only.
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


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Keep compiled programs on disk, so that the second run with the same shapes only traces."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Ten pictures of 32 × 32 pixels with instances."""
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 10, size=32)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    """Six volumes of 24 × 24 × 6 voxels with two labels."""
    return make_phantom_dataset(tmp_path_factory.mktemp("volumes") / "volumes", "volumes", 6, size=24)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees, or fills, the cache of whoever runs it."""
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path_factory.getbasetemp() / "medvfm_cache"))


_load_base = functools.lru_cache(assemble.load_base)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Build each test model once; that takes a third of a small run."""
    for module in ("assemble", "adapt", "evaluate"):
        monkeypatch.setattr(sys.modules[f"medvfm_jax.train.{module}"], "load_base", _load_base)


def small(data: Path, out: Path, **settings) -> AdaptConfig:
    """The settings of a small run."""
    return AdaptConfig(**{"data": str(data), "out": out} | SMALL | settings)


@pytest.fixture(scope="module")
def finished(cells, compiled, tmp_path_factory):
    """The result of a small run on the cells; its folder must not be changed."""
    return adapt(small(cells, tmp_path_factory.mktemp("runs") / "cells"))
