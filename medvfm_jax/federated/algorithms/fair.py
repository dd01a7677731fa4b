"""q-FedAvg: clients with a larger loss weigh more, so that losses become more equal (Li et al. 2020)."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.local_training import Gradient, local_steps, observed, rate_of, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import scale, subtract

_SMALLEST_LOSS = 1e-10  # F^(q-1) of a client that has nothing left to learn


def qfedavg(gradient: Gradient, learning_rate: float, q: float = 1.0) -> Algorithm:
    """w_i = L (x - y_i), L = 1/eta; x <- x - sum_i F_i^q w_i / sum_i (q F_i^(q-1) |w_i|^2 + L F_i^q).

    F_i is the loss of x on the client's batches, which costs one more forward pass.  q = 0 is FedAvg with equal
    clients.  Both sums depend on the data and are uploaded, clipped and noised together.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        learning_rate: step size of plain local SGD.
        q: exponent of the losses: the larger, the more clients with large losses count.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Li et al. 2020, https://arxiv.org/abs/1905.10497
    """
    optimizer = optax.sgd(learning_rate)

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        delta, seen, _ = local_steps(gradient, optimizer, server.delta, shard, step_mask, key)
        at_start = jnp.maximum(_mean_loss(gradient, server.delta, shard, step_mask, key), _SMALLEST_LOSS)
        lipschitz = 1 / rate_of(shard, learning_rate)
        step = scale(lipschitz, subtract(server.delta, delta))
        squared = optax.tree.norm(step, squared=True)
        size = q * at_start ** (q - 1) * squared + lipschitz * at_start**q
        upload = {"step": scale(at_start**q, step), "size": size.astype(seen.loss.dtype)}
        return own, report(upload, seen)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        size = jnp.where(mean["size"] > 0, mean["size"], jnp.inf)  # noise may leave nothing to divide by
        return server._replace(delta=subtract(server.delta, scale(1 / size, mean["step"])))

    return Algorithm(
        lambda delta: (delta, ()),
        lambda delta, client_id: (),
        client_update,
        aggregate,
        weights="equal",
        applies="divides one noised part of it by another, so that a round may move the model not at all or very far",
        reads="the loss of the server's model on its batches",
    )


def _mean_loss(gradient: Gradient, delta: Tree, shard: Shard, step_mask: Array, key: Array) -> Array:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(step_mask.shape[0]))
    values = jax.lax.map(lambda one: observed(gradient(delta, *one)[0]).loss, (shard.batches, keys))
    return jnp.where(step_mask, values, 0).sum() / jnp.maximum(step_mask.sum(), 1)
