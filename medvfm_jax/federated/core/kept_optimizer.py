"""Optimizers whose state a client keeps from round to round, and the algorithms for which that makes sense.

Federated algorithms start the local optimizer anew each round, as their papers do; so do the baselines, which are
compared with them.  To keep Adam's moments is an option of its own.
"""

from typing import NamedTuple

import optax

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Tree

# Whose clients make one sequence of optimizer steps in a round, all on the same leaves: those made by `averaging`.
KEEPING = (
    "fedavg", "fedprox", "fedsharp", "fedavgm", "fedadagrad", "fedyogi", "fedadam", "fedper", "fedbn", "fedit",
    "ffa_lora", "fedsa_lora", "iat", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "local",
    "centralised",
)  # fmt: skip


class KeptOptimizer(optax.GradientTransformation):
    """An optimizer that goes on where a client's last round ended; `averaging` looks for this type."""


class KeptState(NamedTuple):
    """State of a client of the algorithm itself, and of its optimizer."""

    own: Tree
    optimizer: Tree


def kept(optimizer: optax.GradientTransformation, algorithm: str) -> KeptOptimizer:
    """The same optimizer, kept between rounds; raises BadFederation for an algorithm that cannot."""
    if algorithm not in KEEPING:
        raise BadFederation(
            f"{algorithm} cannot keep the optimizer's state between rounds (its clients take plain SGD steps, or train "
            f"other parts in other steps): leave --keep-optimizer out, or choose from {', '.join(KEEPING)}."
        )
    return KeptOptimizer(*optimizer)


def without_optimizer(states: Tree) -> Tree:
    """Stacked states of clients -> those of the algorithm itself."""
    return states.own if isinstance(states, KeptState) else states
