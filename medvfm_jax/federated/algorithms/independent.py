"""Training without exchange, as the baselines of a federation: every client for itself, or one client with all data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.backends import vary_like
from medvfm_jax.federated.local_training import Loss, scale_by_rate
from medvfm_jax.federated.records import Algorithm, Report, Server, Shard, Tree
from medvfm_jax.federated.tree_math import select


class OwnTraining(NamedTuple):
    """A client's delta and the state of its optimizer, which is not started again each round."""

    delta: Tree
    optimizer: Tree


def independent(loss: Loss, optimizer: optax.GradientTransformation) -> Algorithm:
    """Each client goes on with its own delta and optimizer; nothing is sent, and the server's delta never changes.

    Over rounds this is plain training: K steps in each of R rounds are K R steps.
    """
    gradient = jax.value_and_grad(loss)

    def init_client(delta: Tree, client_id: Array) -> OwnTraining:
        del client_id
        return OwnTraining(delta, optimizer.init(delta))

    def client_update(
        server: Server, own: OwnTraining, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[OwnTraining, Report]:
        del server

        def step(carry: tuple, xs: tuple) -> tuple[tuple, None]:
            (own, total), (batch, active, i) = carry, xs
            value, grads = gradient(own.delta, batch, jax.random.fold_in(key, i))
            updates, state = optimizer.update(grads, own.optimizer, own.delta)
            delta = optax.apply_updates(own.delta, scale_by_rate(updates, shard))
            return select(active, (OwnTraining(delta, state), total + value), carry), None

        value, _ = jax.eval_shape(gradient, own.delta, jax.tree.map(lambda x: x[0], shard.batches), key)
        carry = (own, jnp.zeros((), value.dtype))
        xs = (shard.batches, step_mask, jnp.arange(step_mask.shape[0]))
        (own, total), _ = jax.lax.scan(step, vary_like(carry, step_mask), xs)
        nothing = jnp.zeros((0,), value.dtype)
        mean = total / jnp.maximum(step_mask.sum(), 1)
        return own, Report(nothing, shard.samples.astype(value.dtype), mean)

    return Algorithm(
        lambda delta: (delta, ()),
        init_client,
        client_update,
        lambda server, mean, cohort: server,
        download=lambda server: (),
    )
