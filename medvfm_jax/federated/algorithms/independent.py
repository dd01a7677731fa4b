"""Training without exchange, as the baselines of a federation: every client for itself, or one client with all data."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.kept_optimizer import KeptOptimizer, KeptState
from medvfm_jax.federated.local_training import Loss, local_steps_from
from medvfm_jax.federated.records import Algorithm, Report, Server, Shard, Tree


def independent(loss: Loss, optimizer: optax.GradientTransformation) -> Algorithm:
    """Each client goes on with its own delta; nothing is sent, and the server's delta never changes.

    The optimizer starts anew each round, as in every federated algorithm.  With a `KeptOptimizer` it goes on, and
    this is plain training: K steps in each of R rounds are K R steps.
    """
    gradient, keeps = jax.value_and_grad(loss), isinstance(optimizer, KeptOptimizer)

    def init_client(delta: Tree, client_id: Array) -> Tree:
        del client_id
        return KeptState(delta, optimizer.init(delta)) if keeps else delta

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        del server
        start, state = own if keeps else (own, optimizer.init(own))
        delta, state, mean = local_steps_from(gradient, optimizer, state, start, shard, step_mask, key)
        nothing = jnp.zeros((0,), mean.dtype)
        own = KeptState(delta, state) if keeps else delta
        return own, Report(nothing, shard.samples.astype(mean.dtype), mean)

    return Algorithm(
        lambda delta: (delta, ()),
        init_client,
        client_update,
        lambda server, mean, cohort: server,
        download=lambda server: (),
    )
