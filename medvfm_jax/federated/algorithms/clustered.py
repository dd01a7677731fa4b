"""Clustered federated learning: clients whose changes cancel get models of their own clusters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.crosstask.client_clusters import cluster_means, number_of_clusters, parted
from medvfm_jax.federated.algorithms.task_conflicts import combined, gram_of, rows_of
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import subtract


class Clusters(NamedTuple):
    """What the server keeps.

    Attributes:
        together: (clients, clients) bool.
        longest: () length of the longest change of any round.
        models: (clients, ...), equal within a cluster.
    """

    together: Array
    longest: Array
    models: Tree


def clustered(
    gradient: Gradient,
    optimizer: Optimizer,
    clients: int,
    stationary: float = 0.25,
    moving: float = 0.25,
    threshold: float = 0.0,
) -> Algorithm:
    """FedAvg within clusters, which part where their changes cancel (CFL, Sattler et al. 2019).

    At the start there is one cluster. One whose mean change is shorter than ``stationary`` times its longest change,
    while that is no shorter than ``moving`` times the longest of any round, parts into the groups that are joined by
    cosines of changes of at least ``threshold``, if all of it takes part in the round. Clients of a cluster have one
    model, and count equally.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n.
        stationary: how short a mean change has to be beside the longest one.
        moving: how long the longest change has to be beside the longest of any round.
        threshold: of the cosine.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Sattler et al. 2019, https://arxiv.org/abs/1910.01991.  Differs: lengths are compared with others instead of
        with given ones, and the threshold is given instead of estimated from the noise; the shared model, for sites
        that took no part, is the mean of the clients'.
    """

    def init_server(delta: Tree) -> tuple[Tree, Clusters]:
        models = jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *x.shape)), delta)
        return delta, Clusters(jnp.ones((clients, clients), bool), jnp.zeros(()), models)

    def own_model(server: Server, own: Array) -> Tree:
        return jax.tree.map(lambda x: x[own], server.state.models)

    def client_update(
        server: Server, own: Array, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Array, Report]:
        start = own_model(server, own)
        result, seen, _ = local_steps(gradient, optimizer, start, shard, step_mask, key)
        return own, report(subtract(result, start), seen, public={"client": own})

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        together, longest, models = server.state
        rows = rows_of(cohort, clients)
        present = jnp.zeros(clients, bool).at[rows].set(True, mode="drop")
        changes = jax.tree.map(lambda m, x: jnp.zeros_like(m).at[rows].set(x, mode="drop"), models, uploads)
        gram = gram_of(changes)
        longest = jnp.maximum(longest, jnp.sqrt(jnp.diagonal(gram).max()).astype(longest.dtype))
        together = parted(gram, together, present, stationary, threshold, moving * longest)
        means = cluster_means(together, present)
        moved = combined(means, changes)
        models = jax.tree.map(jnp.add, models, moved)
        shared = jax.tree.map(lambda x: x.mean(0), models)
        return server._replace(delta=shared, state=Clusters(together, longest, models))

    def measure(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
        del uploads, weights
        return {"clusters": number_of_clusters(server.state.together)}

    return Algorithm(
        init_server,
        lambda delta, client_id: client_id,
        client_update,
        aggregate,
        reduction="stack",
        measure=measure,
        download=lambda server: jax.tree.map(lambda x: x[0], server.state.models),
        model=lambda server, own: server.delta if own is None else own_model(server, own),
        weights="equal",
    )
