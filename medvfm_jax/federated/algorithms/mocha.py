"""MOCHA: a model for each client, drawn to the others' as far as their tasks turn out to be related."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.crosstask.task_relations import task_covariance, task_precision
from medvfm_jax.federated.algorithms.task_conflicts import combined, gram_of, measure_conflicts, rows_of
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, subtract


class Related(NamedTuple):
    """What the server keeps.

    Attributes:
        start: the delta before the first round.
        learnt: (clients, ...), each client's model minus start.
        precision: (clients, clients), see ``crosstask.task_precision``.
    """

    start: Tree
    learnt: Tree
    precision: Array


def mocha(
    gradient: Gradient, optimizer: Optimizer, clients: int, strength: float = 0.01, ridge: float = 0.1
) -> Algorithm:
    """Clients minimise f_i + strength/2 tr(W P W'), W what all have learnt, the others' columns as the server has them.

    P is the inverse of n Omega (1 - ridge) + ridge I, Omega = (W'W)^(1/2) over its trace: after every round the
    relation of the tasks is learnt from their models. P is the identity for tasks that have nothing to do with each
    other, and then each is drawn to the start alone.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n, each with a task of its own.
        strength: of the pull.
        ridge: how much tasks count as unrelated, whatever they have learnt.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Smith et al. 2017, https://arxiv.org/abs/1705.10467.  Differs: local steps of any optimizer on a network in the
        place of the dual of a convex problem; the identity is mixed into Omega; W is what was learnt since the start,
        and the shared model, for sites that took no part, is the mean of the clients'.
    """

    def init_server(delta: Tree) -> tuple[Tree, Related]:
        learnt = jax.tree.map(lambda x: jnp.zeros((clients, *x.shape), x.dtype), delta)
        dtype = jnp.result_type(*jax.tree.leaves(delta))
        return delta, Related(delta, learnt, jnp.eye(clients, dtype=dtype))

    def own_model(server: Server, own: Array) -> Tree:
        return add(server.state.start, jax.tree.map(lambda x: x[own], server.state.learnt))

    def client_update(
        server: Server, own: Array, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Array, Report]:
        start, learnt, precision = server.state
        row = precision[own]
        of_others = combined(row.at[own].set(0), learnt)

        def pull(grads: Tree, delta: Tree) -> Tree:
            return add(grads, scale(strength, add(scale(row[own], subtract(delta, start)), of_others)))

        first = own_model(server, own)
        result, seen, _ = local_steps(gradient, optimizer, first, shard, step_mask, key, pull)
        return own, report(subtract(result, first), seen, public={"client": own})

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        start, learnt, _ = server.state
        rows = rows_of(cohort, clients)
        learnt = jax.tree.map(lambda old, new: old.at[rows].add(new, mode="drop"), learnt, uploads)
        precision = task_precision(task_covariance(gram_of(learnt)), ridge)
        shared = jax.tree.map(lambda s, x: s + x.mean(0), start, learnt)
        return server._replace(delta=shared, state=Related(start, learnt, precision))

    def download(server: Server) -> Tree:
        """What a client starts from, what draws it, and its own entry of the precision."""
        own = jax.tree.map(lambda x: x[0], server.state.learnt)
        return own, own, server.state.precision[0, 0]

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
