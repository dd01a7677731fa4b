"""MaTU: the server keeps one vector for all clients' tasks, and each client takes its part of it by a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.crosstask.task_vectors import Unified, of_task, unify
from medvfm_jax.federated.algorithms.task_conflicts import measure_conflicts, rows_of
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import subtract


class Tasks(NamedTuple):
    """What the server keeps.

    Attributes:
        start: the delta before the first round.
        vectors: (clients, numbers), the task vector that each client sent last.
        known: (clients,) bool, who has sent one.
        unified: of those that are known.
    """

    start: Tree
    vectors: Array
    known: Array
    unified: Unified


def matu(gradient: Gradient, optimizer: Optimizer, clients: int) -> Algorithm:
    """Clients go on from start + scale_i mask_i * u, u being the unified vector of all their task vectors.

    u has for every number the largest magnitude among the clients that agree with the sign of their sum, see
    ``crosstask.unify``; a client that has sent nothing yet starts from the mean of the others' models.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n, each with a task of its own.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Tsouvalas et al. 2025, https://arxiv.org/abs/2502.06376.  Interpretation: the abstract was read, and the merging
        is that of https://arxiv.org/abs/2405.17461. Every client has one task, and all count alike, however similar
        their vectors are. The shared model is the mean of the clients'.
    """

    def init_server(delta: Tree) -> tuple[Tree, Tasks]:
        flat, _ = ravel_pytree(delta)
        nothing, nobody = jnp.zeros((clients, flat.size), flat.dtype), jnp.zeros(clients, bool)
        return delta, Tasks(delta, nothing, nobody, unify(nothing, nobody))

    def own_model(server: Server, own: Array) -> Tree:
        start, restore = ravel_pytree(server.state.start)
        shared, _ = ravel_pytree(server.delta)
        taken = start + of_task(server.state.unified, own)
        return restore(jnp.where(server.state.known[own], taken, shared))

    def client_update(
        server: Server, own: Array, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Array, Report]:
        start = own_model(server, own)
        result, seen, _ = local_steps(gradient, optimizer, start, shard, step_mask, key)
        return own, report(subtract(result, start), seen, public={"client": own})

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        start, vectors, known, _ = server.state
        rows = rows_of(cohort, clients)
        flat, restore = ravel_pytree(start)

        def vector(own: Array, upload: Tree) -> Array:
            from_where, _ = ravel_pytree(own_model(server, jnp.minimum(own, clients - 1)))
            return from_where - flat + ravel_pytree(upload)[0]

        vectors = vectors.at[rows].set(jax.vmap(vector)(rows, uploads), mode="drop")
        known = known.at[rows].set(True, mode="drop")
        unified = unify(vectors, known)
        models = jax.vmap(lambda own: of_task(unified, own))(jnp.arange(clients))
        mean = jnp.where(known[:, None], models, 0).sum(0) / jnp.maximum(known.sum(), 1)
        return server._replace(delta=restore(flat + mean), state=Tasks(start, vectors, known, unified))

    def download(server: Server) -> Tree:
        unified = server.state.unified
        return unified.vector, unified.masks[0], unified.scales[0]

    return Algorithm(
        init_server,
        lambda delta, client_id: client_id,
        client_update,
        aggregate,
        reduction="stack",
        measure=measure_conflicts,
        download=download,
        model=lambda server, own: server.delta if own is None else own_model(server, own),
        weights="equal",
    )
