"""MaT-FL: encoders are averaged within groups that form anew in every round, heads stay with their clients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.crosstask.client_clusters import cluster_means, joined_by_cosine, number_of_clusters
from medvfm_jax.federated.algorithms.task_conflicts import combined, gram_of, rows_of
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.personal_parts import join_personal, split_like, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import subtract


class Head(NamedTuple):
    """What a client keeps.

    Attributes:
        id: which of the server's bodies is its.
        personal: its own leaves.
    """

    id: Array
    personal: Tree


def mat_fl(
    gradient: Gradient, optimizer: Optimizer, clients: int, personal: str, threshold: float = 0.0
) -> Algorithm:
    """Bodies become the mean of those of their group, clients joined by cosines of changes of at least ``threshold``.

    Clients that are absent keep their models and are in nobody's group.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n.
        personal: regular expression of the paths of leaves that stay with their client.
        threshold: of the cosine.

    Returns:
        The algorithm, for ``make_round``.

    Raises:
        BadFederation: from ``init_server``, if everything is personal.

    References:
        Cai et al. 2023 (CVPR Workshops), compared by Lu et al. 2024, https://arxiv.org/abs/2311.13250.  Interpretation:
        the abstract was read; groups are joined by the cosines of the changes of the round, of all layers together,
        and the shared model is the mean of the clients' bodies.
    """

    def init_server(delta: Tree) -> tuple[Tree, Tree]:
        body, _ = split_personal(delta, personal)
        if not jax.tree.leaves(body):
            raise BadFederation(
                "A part of the model stays at its client, but the pattern for personal parts matches all of it, so "
                "that nothing is shared."
            )
        models = jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *x.shape)), body)
        return body, models

    def own_model(server: Server, own: Head) -> Tree:
        return join_personal(jax.tree.map(lambda x: x[own.id], server.state), own.personal)

    def client_update(
        server: Server, own: Head, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Head, Report]:
        start = own_model(server, own)
        result, seen, _ = local_steps(gradient, optimizer, start, shard, step_mask, key)
        body, head = split_like(result, server.delta)
        before, _ = split_like(start, server.delta)
        return Head(own.id, head), report(subtract(body, before), seen, public={"client": own.id})

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        rows = rows_of(cohort, clients)
        present = jnp.zeros(clients, bool).at[rows].set(True, mode="drop")
        changes = jax.tree.map(
            lambda m, x: jnp.zeros_like(m).at[rows].set(x, mode="drop"), server.state, uploads
        )
        together = joined_by_cosine(gram_of(changes), present, threshold)
        # A group is of those that are present, or of one absent client, whose model stays as it is.
        moved = jax.tree.map(jnp.add, server.state, changes)
        models = combined(cluster_means(together, jnp.ones(clients, bool)), moved)
        shared = jax.tree.map(lambda x: x.mean(0), models)
        return server._replace(delta=shared, state=models)

    def measure(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
        del server
        here = weights > 0
        groups = number_of_clusters(joined_by_cosine(gram_of(uploads), here, threshold)) - (~here).sum()
        return {"clusters": groups}

    return Algorithm(
        init_server,
        lambda delta, client_id: Head(client_id, split_personal(delta, personal)[1]),
        client_update,
        aggregate,
        reduction="stack",
        measure=measure,
        download=lambda server: jax.tree.map(lambda x: x[0], server.state),
        model=lambda server, own: server.delta if own is None else own_model(server, own),
        weights="equal",
    )
