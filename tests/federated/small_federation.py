"""The smallest federated run there is: two sites of phantom cells, the last layers of a decoder, two rounds."""

import functools
import importlib
from pathlib import Path

import pytest

from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train import base_model

SMALL = {
    "model": "sam-tiny-test", "preset": "linear", "prompt": "box", "rounds": 3, "local_steps": 2, "batch_size": 2,
    "prompts_per_image": 2, "learning_rate": 0.01, "val_fraction": 0.2, "test_fraction": 0.2, "validation_images": 2,
}  # fmt: skip

_load_base = functools.lru_cache(base_model.load_base)


def small(data: Path, out: Path, **settings) -> FederateConfig:
    """The settings of a small run."""
    return FederateConfig(**{"data": str(data), "out": out} | SMALL | settings)


def build_models_once(patch: pytest.MonkeyPatch) -> None:
    """Keep the test model of earlier runs; building it takes a large part of a small run."""
    for module in ("train.base_model", "train.assemble", "train.stored_delta", "predict.subject"):
        patch.setattr(importlib.import_module(f"medvfm_jax.{module}"), "load_base", _load_base)
