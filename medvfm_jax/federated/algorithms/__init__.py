"""Federated algorithms, each a factory from a client's gradient (``local_training.Gradient``) to an ``Algorithm``.

Examples:
    >>> fedavg(gradient_of(loss), optax.adamw(1e-4))
"""

from medvfm_jax.federated.algorithms.averaging import fedavg, fedopt, fedprox, fedsharp
from medvfm_jax.federated.algorithms.clustered import clustered
from medvfm_jax.federated.algorithms.contrastive import moon
from medvfm_jax.federated.algorithms.control_variates import scaffold
from medvfm_jax.federated.algorithms.dynamic import feddyn
from medvfm_jax.federated.algorithms.ensemble import feddf
from medvfm_jax.federated.algorithms.fair import qfedavg
from medvfm_jax.federated.algorithms.fedhca2 import DECODERS, fedhca2
from medvfm_jax.federated.algorithms.inverse_asymmetric import iat
from medvfm_jax.federated.algorithms.low_rank import fedit, fedsa_lora, ffa_lora, hetlora, rolora
from medvfm_jax.federated.algorithms.low_rank_exact import fedex_lora, flexlora, flora, lora_fair
from medvfm_jax.federated.algorithms.mat_fl import mat_fl
from medvfm_jax.federated.algorithms.matu import matu
from medvfm_jax.federated.algorithms.mocha import mocha
from medvfm_jax.federated.algorithms.normalised import fednova
from medvfm_jax.federated.algorithms.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi
from medvfm_jax.federated.algorithms.task_conflicts import cagrad, fedbone, imtl_g, mgda, nash_mtl, pcgrad
from medvfm_jax.federated.algorithms.task_weights import dwa, famo, grad_norm, uncertainty

__all__ = [
    "DECODERS",
    "cagrad",
    "clustered",
    "dwa",
    "famo",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedbone",
    "feddf",
    "feddyn",
    "fedex_lora",
    "fedhca2",
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
    "grad_norm",
    "hetlora",
    "iat",
    "imtl_g",
    "lora_fair",
    "mat_fl",
    "matu",
    "mgda",
    "mocha",
    "moon",
    "nash_mtl",
    "pcgrad",
    "qfedavg",
    "rolora",
    "scaffold",
    "uncertainty",
]
