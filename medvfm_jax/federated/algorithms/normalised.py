"""FedNova: changes normalised by local effort, so that busy clients do not move the optimum (Wang et al. 2020)."""

import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.local_training import Gradient, local_steps, report
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, subtract


def fednova(gradient: Gradient, learning_rate: float, momentum: float = 0.0, mu: float = 0.0) -> Algorithm:
    """x <- x + tau_eff sum_i p_i (y_i - x) / |a_i|_1, tau_eff = sum_i p_i |a_i|_1, after local SGD.

    |a_i|_1 of ``effort``; a client's own rate factor counts as effort too.  Use momentum or the proximal term mu,
    not both: the paper gives no formula for their combination.  tau_eff is an exact mean over those who came, so this
    does not go with client-level privacy: noise would be multiplied by it, and be missing when nobody came.

    Raises ValueError for both at once.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        learning_rate: step size of plain local SGD.
        momentum: of the local SGD.
        mu: weight of the proximal term mu/2 |y - x|^2.

    Returns:
        The algorithm, for ``make_round``.

    Raises:
        ValueError: momentum and mu are both given.

    References:
        Wang et al. 2020, https://arxiv.org/abs/2007.07481
    """
    if momentum and mu:
        raise ValueError("fednova: momentum and the proximal term mu cannot be combined.")
    optimizer = optax.sgd(learning_rate, momentum or None)

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def prox(grads: Tree, delta: Tree) -> Tree:
            return add(grads, scale(mu, subtract(delta, server.delta)))

        correct = prox if mu else None
        delta, seen, _ = local_steps(gradient, optimizer, server.delta, shard, step_mask, key, correct)
        dtype = seen.loss.dtype
        rate = jnp.ones((), dtype) if shard.rate is None else shard.rate.astype(dtype)
        length = rate * effort(step_mask.sum().astype(dtype), momentum, rate * learning_rate * mu)
        direction = scale(1 / jnp.where(length > 0, length, 1), subtract(delta, server.delta))
        return own, report(direction, seen, shard.samples, {"effort": length})

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        return server._replace(delta=add(server.delta, scale(cohort.public["effort"], mean)))

    return Algorithm(
        lambda delta: (delta, ()),
        lambda delta, client_id: (),
        client_update,
        aggregate,
        exact="the mean effort of those who came",
    )


def effort(steps: Array, momentum: float, shrink: Array | float) -> Array:
    """|a|_1 after ``steps`` local steps: the sum of the factors with which gradients enter y - x, over eta.

    Plain SGD: steps.  Momentum m: (steps - m (1 - m^steps) / (1 - m)) / (1 - m).  Proximal term, with
    ``shrink`` = eta mu: (1 - (1 - shrink)^steps) / shrink.
    """
    if momentum:
        return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    shrink = jnp.asarray(shrink, steps.dtype)
    return jnp.where(shrink > 0, (1 - (1 - shrink) ** steps) / jnp.where(shrink > 0, shrink, 1), steps)
