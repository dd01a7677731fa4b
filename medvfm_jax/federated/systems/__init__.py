"""Published federated systems of foundation models, as presets over the same rounds.

``get(name)`` gives one as an adapter and an algorithm.
"""

from medvfm_jax.federated.systems.catalog import System, describe, get, names
from medvfm_jax.federated.systems.feddpa import instance_weight, mix

__all__ = [
    "System",
    "describe",
    "get",
    "instance_weight",
    "mix",
    "names",
]
