"""Federated algorithms, each a factory from a client's gradient (``local_training.Gradient``) to an ``Algorithm``.

Examples:
    >>> fedavg(gradient_of(loss), optax.adamw(1e-4))
"""

from medvfm_jax.federated.algorithms.averaging import fedavg, fedopt, fedprox, fedsharp
from medvfm_jax.federated.algorithms.contrastive import moon
from medvfm_jax.federated.algorithms.control_variates import scaffold
from medvfm_jax.federated.algorithms.dynamic import feddyn
from medvfm_jax.federated.algorithms.ensemble import feddf
from medvfm_jax.federated.algorithms.fair import qfedavg
from medvfm_jax.federated.algorithms.low_rank import fedit, fedsa_lora, ffa_lora, hetlora, rolora
from medvfm_jax.federated.algorithms.low_rank_exact import fedex_lora, flexlora, flora, lora_fair
from medvfm_jax.federated.algorithms.normalised import fednova
from medvfm_jax.federated.algorithms.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi

__all__ = [
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "feddf",
    "feddyn",
    "fedex_lora",
    "fedit",
    "fednova",
    "fedopt",
    "fedprox",
    "fedsa_lora",
    "fedsharp",
    "fedyogi",
    "ffa_lora",
    "flexlora",
    "flora",
    "hetlora",
    "lora_fair",
    "moon",
    "qfedavg",
    "rolora",
    "scaffold",
]
