"""Adapt, distil and federate vision foundation models for medical images, as pure JAX functions.

Examples:
    >>> model, params = medvfm_jax.load("lite-medsam")
    >>> adapter = medvfm_jax.systems.adapter("samed", model)

The folders below are imported on first use, so that the command line answers at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvfm_jax import (
        adapters,
        data,
        distill,
        federated,
        images,
        losses,
        metrics,
        models,
        parallel,
        plan,
        predict,
        systems,
        train,
        types,
        weights,
    )
    from medvfm_jax.weights import load

__version__ = "0.1.0"

__all__ = [
    "adapters",
    "data",
    "distill",
    "federated",
    "images",
    "load",
    "losses",
    "metrics",
    "models",
    "parallel",
    "plan",
    "predict",
    "systems",
    "train",
    "types",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("medvfm_jax.weights").load
    if name in __all__:
        return importlib.import_module(f"medvfm_jax.{name}")
    raise AttributeError(f"module 'medvfm_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
