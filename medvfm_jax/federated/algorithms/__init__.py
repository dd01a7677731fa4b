"""Federated algorithms, each a factory from ``loss(delta, batch, key) -> scalar`` to an ``Algorithm``."""

from medvfm_jax.federated.algorithms.averaging import fedavg, fedopt, fedprox, fedsharp
from medvfm_jax.federated.algorithms.contrastive import moon
from medvfm_jax.federated.algorithms.control_variates import scaffold
from medvfm_jax.federated.algorithms.dynamic import feddyn
from medvfm_jax.federated.algorithms.ensemble import feddf
from medvfm_jax.federated.algorithms.fair import qfedavg
from medvfm_jax.federated.algorithms.normalised import fednova
from medvfm_jax.federated.algorithms.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi

__all__ = [
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "feddf",
    "feddyn",
    "fednova",
    "fedopt",
    "fedprox",
    "fedsharp",
    "fedyogi",
    "moon",
    "qfedavg",
    "scaffold",
]
