"""FedDF: after averaging, the server learns from the ensemble of clients on unlabelled data (Lin et al. 2020)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.algorithms.averaging import fedavg
from medvfm_jax.federated.core.local_training import Gradient, Optimizer
from medvfm_jax.federated.core.records import Algorithm, Cohort, Server, Tree
from medvfm_jax.federated.core.tree_math import add

Logits = Callable[[Tree, Tree], Array]  # (delta, batch) -> (..., classes)


def feddf(
    gradient: Gradient,
    optimizer: Optimizer,
    logits: Logits,
    public_batches: Tree,
    server_optimizer: Optimizer | None = None,
) -> Algorithm:
    """FedAvg, then one step of the server optimizer per unlabelled batch on ``ensemble_loss``.

    The ensemble is the plain mean of the participants' logits.  Adam normalises gradients of any size, so even clients
    that agree move the server a little.  The server needs every client's delta, so this does not go with privacy.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        logits: (delta, batch) -> logits (batch, classes, ...) of one client's model.
        public_batches: unlabelled batches at the server, leaves (steps, batch, ...), the same in every round.
        server_optimizer: of the distillation; None: Adam with rate 1e-3.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Lin et al. 2020, https://arxiv.org/abs/2006.07242
    """
    base, server_optimizer = fedavg(gradient, optimizer), server_optimizer or optax.adam(1e-3)

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        teachers = add(server.delta, uploads)  # the stacked axis n broadcasts against the server's delta
        share = cohort.weights / jnp.maximum(cohort.weights.sum(), 1e-30)
        mean = jax.tree.map(lambda u: jnp.tensordot(share.astype(u.dtype), u, 1), uploads)
        averaged = base.aggregate(server, mean, cohort)

        def step(carry: tuple, batch: Tree) -> tuple[tuple, None]:
            delta, state = carry
            outputs = jax.vmap(logits, (0, None))(teachers, batch)
            present = cohort.present.reshape(-1, *[1] * (outputs.ndim - 1))
            teacher = jnp.where(present, outputs, 0).sum(0) / jnp.maximum(cohort.present.sum(), 1)
            grads = jax.grad(lambda d: ensemble_loss(logits(d, batch), teacher))(delta)
            updates, state = server_optimizer.update(grads, state, delta)
            return (optax.apply_updates(delta, updates), state), None

        start = (averaged.delta, server_optimizer.init(averaged.delta))
        (delta, _), _ = jax.lax.scan(step, start, public_batches)
        return averaged._replace(delta=delta)

    return base._replace(aggregate=aggregate, reduction="stack")


def ensemble_loss(student: Array, teacher: Array) -> Array:
    """Logits (..., classes) -> mean KL(softmax(teacher) || softmax(student))."""
    log_t, log_s = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return (jnp.exp(log_t) * (log_t - log_s)).sum(-1).mean()
