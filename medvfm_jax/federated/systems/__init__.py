"""Published federated systems of foundation models, as records over the same rounds.

``SYSTEMS[name]`` gives one as an adapter and an algorithm.
"""

from medvfm_jax.federated.systems.catalog import SYSTEMS
from medvfm_jax.federated.systems.feddpa import instance_weight, mix
from medvfm_jax.federated.systems.record import FederatedSystem

__all__ = [
    "SYSTEMS",
    "FederatedSystem",
    "instance_weight",
    "mix",
]
