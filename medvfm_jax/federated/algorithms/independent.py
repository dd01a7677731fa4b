"""Training without exchange, as the baselines of a federation: every client for itself, or one client with all data."""

import optax

from medvfm_jax.federated.algorithms.averaging import averaging
from medvfm_jax.federated.core.local_training import Gradient, Optimizer
from medvfm_jax.federated.core.records import Algorithm


def independent(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """Each client goes on with its own delta: local steps of which nothing is shared.

    The optimizer starts anew each round, as in every federated algorithm.  With a `KeptOptimizer` it goes on, and
    this is plain training: K steps in each of R rounds are K R steps.
    """
    return averaging(gradient, optimizer, optax.sgd(1.0), personal=".*")
