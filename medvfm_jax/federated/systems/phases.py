"""Work that only some rounds do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.backends import vary_like
from medvfm_jax.federated.records import Tree


def only_if(condition: Array, work: Callable[[], Tree], like: Array) -> Tree:
    """Result of ``work()``, or zeros without doing it; ``like`` is an array of the client.

    A condition () on the round, which all clients share, stays a branch under vmap, so that the work is saved.
    """
    shapes = jax.eval_shape(work)
    idle = vary_like(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), like)
    return jax.lax.cond(condition, work, lambda: idle)
