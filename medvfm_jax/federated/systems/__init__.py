"""Published federated systems of foundation models, as records over the same rounds.

``get(name)`` gives one as an adapter and an algorithm.  FedPFT's distillation is for Python alone, in ``fedpft``.
"""

from medvfm_jax.federated.systems import fedpft
from medvfm_jax.federated.systems.catalog import SYSTEMS, describe, get, names
from medvfm_jax.federated.systems.feddpa import instance_weight, mix
from medvfm_jax.federated.systems.record import FederatedSystem

__all__ = [
    "SYSTEMS",
    "FederatedSystem",
    "describe",
    "fedpft",
    "get",
    "instance_weight",
    "mix",
    "names",
]
