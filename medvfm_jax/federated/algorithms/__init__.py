"""Federated algorithms, each a factory from ``loss(delta, batch, key) -> scalar`` to an ``Algorithm``."""

from medvfm_jax.federated.algorithms.averaging import fedavg, fedopt, fedprox, fedsharp
from medvfm_jax.federated.algorithms.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi

__all__ = ["fedadagrad", "fedadam", "fedavg", "fedavgm", "fedopt", "fedprox", "fedsharp", "fedyogi"]
