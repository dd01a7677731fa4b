"""FedDyn: a linear term per client aligns the local optima with the global one (Acar et al. 2021)."""

from jax import Array

from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, subtract, zeros_like


def feddyn(gradient: Gradient, optimizer: Optimizer, alpha: float = 0.1) -> Algorithm:
    """Clients minimise f_i(y) - <g_i, y> + alpha/2 |y - x|^2 and set g_i <- g_i - alpha (y_i - x).

    Server: h <- h - alpha |S|/N mean_S (y_i - x); x <- mean_S y_i - h / alpha.  Clients count equally.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        alpha: strength of the dynamic regularisation.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Acar et al. 2021, https://arxiv.org/abs/2111.04263
    """

    def client_update(
        server: Server, linear: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def correct(grads: Tree, delta: Tree) -> Tree:
            return add(subtract(grads, linear), scale(alpha, subtract(delta, server.delta)))

        delta, seen, _ = local_steps(gradient, optimizer, server.delta, shard, step_mask, key, correct)
        change = subtract(delta, server.delta)
        return subtract(linear, scale(alpha, change)), report(change, seen)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        h = subtract(server.state, scale(alpha * cohort.fraction, mean))
        delta = subtract(add(server.delta, mean), scale(1 / alpha, h))
        return server._replace(delta=delta, state=h)

    return Algorithm(
        lambda delta: (delta, zeros_like(delta)),
        lambda delta, client_id: zeros_like(delta),
        client_update,
        aggregate,
        weights="equal",
        applies="adds it 1 + m/N times, m of N clients being in the round, and m/N times again in every later one",
    )
