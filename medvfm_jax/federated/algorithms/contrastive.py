"""MOON: local features are pulled to the global model's and away from last round's (Li et al. 2021)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.local_training import Loss, local_steps
from medvfm_jax.federated.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.tree_math import add, subtract

Features = Callable[[Tree, Tree], Array]  # (delta, batch) -> (batch, d)


def moon(
    loss: Loss,
    features: Features,
    optimizer: optax.GradientTransformation,
    mu: float = 1.0,
    temperature: float = 0.5,
) -> Algorithm:
    """FedAvg on loss + mu ``model_contrast``; a client keeps its last local delta."""

    def client_update(
        server: Server, previous: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def contrasted(delta: Tree, batch: Tree, key: Array) -> Array:
            new, anchor, old = (features(d, batch) for d in (delta, server.delta, previous))
            return loss(delta, batch, key) + mu * model_contrast(new, anchor, old, temperature).mean()

        gradient = jax.value_and_grad(contrasted)
        delta, value = local_steps(gradient, optimizer, server.delta, shard, step_mask, key)
        return delta, Report(subtract(delta, server.delta), shard.samples.astype(value.dtype), value)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        return server._replace(delta=add(server.delta, mean))

    return Algorithm(lambda delta: (delta, ()), lambda delta, client_id: delta, client_update, aggregate)


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
