"""Arrays that all clients use and none changes, as the work of a client sees them."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from medvfm_jax.federated.core.records import Algorithm, Report, Server, Shard, Tree
from medvfm_jax.mesh_axes import vary_like


def with_fixed(make: Callable[[Any], Algorithm], fixed: Tree) -> Algorithm:
    """The algorithm of ``make(fixed)``, which may be divided over devices too.

    Where clients are divided over devices, what a client computes with differs over them, also the arrays that are the
    same for all: a hand-written gradient must have the type of its argument, and a row is looked up where the client
    is.  So a client's work is made of arrays that are cast to that type.

    Args:
        make: arrays -> algorithm; called again where a client's work is traced.
        fixed: arrays, such as frozen weights.

    Returns:
        The algorithm.
    """

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        here = vary_like(fixed, jax.tree.leaves(shard)[0])
        return make(here).client_update(server, own, shard, step_mask, key)

    return make(fixed)._replace(client_update=client_update)
