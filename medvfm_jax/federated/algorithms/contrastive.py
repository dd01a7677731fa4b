"""MOON: local features are pulled to the global model's and away from last round's (Li et al. 2021)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report, with_term
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, subtract

Features = Callable[[Tree, Tree], Array]  # (delta, batch) -> (batch, d)


def moon(
    gradient: Gradient,
    features: Features,
    optimizer: Optimizer,
    mu: float = 1.0,
    temperature: float = 0.5,
) -> Algorithm:
    """FedAvg on loss + mu ``model_contrast``; a client keeps its last local delta.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        features: (delta, batch) -> representations (batch, ...), compared by their cosine.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        mu: weight of the contrastive term.
        temperature: of its softmax.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Li et al. 2021, https://arxiv.org/abs/2103.16257
    """

    def client_update(
        server: Server, previous: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def contrast(delta: Tree, batch: Tree) -> Array:
            new, anchor, old = (features(d, batch) for d in (delta, server.delta, previous))
            return mu * model_contrast(new, anchor, old, temperature).mean()

        contrasted = with_term(gradient, contrast)
        delta, seen, _ = local_steps(contrasted, optimizer, server.delta, shard, step_mask, key)
        return delta, report(subtract(delta, server.delta), seen, shard.samples)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        return server._replace(delta=add(server.delta, mean))

    return Algorithm(
        lambda delta: (delta, ()),
        lambda delta, client_id: delta,
        client_update,
        aggregate,
        reads="the features of its images for the contrast",
    )


def model_contrast(new: Array, anchor: Array, old: Array, temperature: float) -> Array:
    """Features (..., d) -> (...): -log of anchor's share in softmax(cos(new, anchor) / T, cos(new, old) / T)."""
    near, far = (_cosine(new, other) / temperature for other in (anchor, old))
    return jax.nn.softplus(far - near)


def _cosine(x: Array, y: Array) -> Array:
    return (x * y).sum(-1) / jnp.maximum(_length(x) * _length(y), 1e-8)


def _length(x: Array) -> Array:
    squared = (x**2).sum(-1)
    safe = jnp.where(squared > 0, squared, 1)  # the root's gradient at zero would be NaN
    return jnp.where(squared > 0, jnp.sqrt(safe), 0)
