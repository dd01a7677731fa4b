"""SCAFFOLD: control variates take the drift of heterogeneous clients out of local steps (Karimireddy et al. 2020)."""

import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.local_training import Gradient, local_steps, rate_of, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, subtract, zeros_like


def scaffold(gradient: Gradient, learning_rate: float, server_rate: float = 1.0) -> Algorithm:
    """Local steps y <- y - eta (g_i(y) - c_i + c); then option II of the paper:

    c_i+ = c_i - c + (x - y_i) / (K eta); x <- x + server_rate mean_S (y_i - x); c <- c + |S|/N mean_S (c_i+ - c_i).
    Clients count equally.  Up and down twice the delta.  A lossy codec acts on what the server sees of both
    changes, so that c is then only about the mean of the c_i.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        learning_rate: step size of plain local SGD.
        server_rate: factor on the mean change.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378
    """
    optimizer = optax.sgd(learning_rate)

    def client_update(
        server: Server, control: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def correct(grads: Tree, delta: Tree) -> Tree:
            del delta
            return add(grads, subtract(server.state, control))

        delta, seen, _ = local_steps(gradient, optimizer, server.delta, shard, step_mask, key, correct)
        change = subtract(delta, server.delta)
        length = jnp.maximum(step_mask.sum(), 1) * rate_of(shard, learning_rate)
        moved = scale(-1, add(server.state, scale(1 / length, change)))  # new control - old control
        return add(control, moved), report({"change": change, "control": moved}, seen)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        delta = add(server.delta, scale(server_rate, mean["change"]))
        return server._replace(delta=delta, state=add(server.state, scale(cohort.fraction, mean["control"])))

    return Algorithm(
        lambda delta: (delta, zeros_like(delta)),
        lambda delta, client_id: zeros_like(delta),
        client_update,
        aggregate,
        download=lambda server: (server.delta, server.state),
        weights="equal",
    )
