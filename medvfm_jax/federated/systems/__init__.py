"""Published federated systems of foundation models, as presets over the same rounds.

``get(name)`` gives one as an adapter and an algorithm.  FeSViBS classifies with a divided model: it is a function, in
``fesvibs``, as is FedPFT's distillation, in ``fedpft``.
"""

from medvfm_jax.federated.systems import fedpft, fesvibs
from medvfm_jax.federated.systems.catalog import System, describe, get, names
from medvfm_jax.federated.systems.feddpa import instance_weight, mix

__all__ = [
    "System",
    "describe",
    "fedpft",
    "fesvibs",
    "get",
    "instance_weight",
    "mix",
    "names",
]
