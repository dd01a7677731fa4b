"""Federated adaptation: one compiled round over a cohort of clients, with codec and privacy.

Examples:
    >>> federation = make_round(algorithms.fedavg(gradient_of(loss), optax.adamw(1e-4)), codec=codecs.int8())
    >>> server, clients = federation.init(delta, data)
    >>> server, clients, metrics = jax.jit(federation.round)(server, clients, data, participation, steps, key)
"""

from medvfm_jax.federated import algorithms, codecs, systems
from medvfm_jax.federated.algorithms import personalise
from medvfm_jax.federated.core import lora_aggregation, robust
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.personal_parts import join_personal, split_personal
from medvfm_jax.federated.core.records import (
    AdaptiveClip,
    Algorithm,
    Client,
    Codec,
    Cohort,
    Federation,
    Metrics,
    Privacy,
    Report,
    Server,
    Shard,
)
from medvfm_jax.federated.rounds.federation import make_round, name_excluded

__all__ = [
    "AdaptiveClip",
    "Algorithm",
    "BadFederation",
    "Client",
    "Codec",
    "Cohort",
    "Federation",
    "Metrics",
    "Privacy",
    "Report",
    "Server",
    "Shard",
    "algorithms",
    "codecs",
    "gradient_of",
    "join_personal",
    "lora_aggregation",
    "make_round",
    "name_excluded",
    "personalise",
    "robust",
    "split_personal",
    "systems",
]
