"""What training carries from step to step: one pytree, enough to continue bit by bit."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.types import Delta


class State(Protocol):
    """What the loop, its hooks and checkpoints ask of a state, a named tuple of arrays."""

    step: Array  # () int32, steps taken
    key: Array  # typed


class TrainState(NamedTuple):
    """What a training step takes and returns.

    The key never changes: step n draws from ``fold_in(key, n)``, so the randomness of a step does not
    depend on how often the run was interrupted before it.

    Attributes:
        delta: what is trained.
        opt_state: the optimiser's state.
        step: () int32, steps taken.
        key: typed PRNG key.
    """

    delta: Delta
    opt_state: optax.OptState
    step: Array
    key: Array


def init_state(delta: Delta, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Start state at step 0; the arrays are copies, because a step consumes (donates) its state.

    Args:
        delta: tree of arrays to train.
        optimizer: its ``init`` gives the optimiser state.
        key: typed PRNG key of the run.

    Returns:
        State with counter 0.
    """
    delta = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), delta)
    return TrainState(delta, optimizer.init(delta), jnp.zeros((), jnp.int32), jnp.array(key, copy=True))
