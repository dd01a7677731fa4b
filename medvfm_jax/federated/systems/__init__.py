"""Published federated systems of foundation models, as records over the same rounds.

``get(name)`` gives one as an adapter and an algorithm.
"""

from medvfm_jax.federated.systems.catalog import SYSTEMS, describe, get, names
from medvfm_jax.federated.systems.feddpa import instance_weight, mix
from medvfm_jax.federated.systems.record import FederatedSystem

__all__ = [
    "SYSTEMS",
    "FederatedSystem",
    "describe",
    "get",
    "instance_weight",
    "mix",
    "names",
]
