"""Algorithms whose server averages the clients' changes: FedAvg, FedProx, FedSharp, a server optimizer on top.

One implementation, ``averaging``, serves them and the personalised ones; the factories say which formula results.
x is the server's delta, y_i the result of client i, p_i its share of the samples.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.kept_optimizer import KeptOptimizer, KeptState
from medvfm_jax.federated.local_training import Loss, ValueAndGrad, local_steps_from, observed
from medvfm_jax.federated.personal_parts import NOTHING, Chosen, join_personal, split_like, split_personal
from medvfm_jax.federated.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.tree_math import add, scale, subtract


def fedavg(loss: Loss, optimizer: optax.GradientTransformation, server_rate: float = 1.0) -> Algorithm:
    """x <- x + server_rate sum_i p_i (y_i - x) (McMahan et al. 2017)."""
    return averaging(loss, optimizer, optax.sgd(server_rate))


def fedprox(loss: Loss, optimizer: optax.GradientTransformation, mu: float) -> Algorithm:
    """FedAvg with mu/2 |y - x|^2 added to each local loss (Li et al. 2020)."""
    return averaging(loss, optimizer, optax.sgd(1.0), mu=mu)


def fedopt(
    loss: Loss, optimizer: optax.GradientTransformation, server_optimizer: optax.GradientTransformation
) -> Algorithm:
    """Feed minus the mean change to any optax optimizer on the server (Reddi et al. 2021)."""
    return averaging(loss, optimizer, server_optimizer)


def fedsharp(loss: Loss, optimizer: optax.GradientTransformation, rho: float = 0.05) -> Algorithm:
    """FedAvg whose clients use the gradient at y + rho g / |g|, g = grad(y), so that they seek flat minima.

    Published as FedSAM (Qu et al. 2022; Caldarola et al. 2022); renamed because SAM is Segment Anything here.
    """
    return averaging(loss, optimizer, optax.sgd(1.0), gradient=partial(sharpness_aware, rho=rho))


def sharpness_aware(loss: Loss, rho: float) -> ValueAndGrad:
    """Loss at y, gradient at y + rho g / |g|; a zero gradient moves nowhere."""
    value_and_grad = jax.value_and_grad(loss)

    def ascend(delta: Tree, batch: Tree, key: Array) -> tuple[Array, Tree]:
        value, grads = value_and_grad(delta, batch, key)
        norm = optax.tree.norm(grads)
        worst = add(delta, scale(rho / jnp.where(norm > 0, norm, 1), grads))
        return value, jax.grad(loss)(worst, batch, key)

    return ascend


class AveragingState(NamedTuple):
    """State of the server optimizer; leaves of the delta that nobody trains."""

    optimizer: Tree
    frozen: Tree


def averaging(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    mu: float = 0.0,
    personal: Chosen = NOTHING,
    frozen: Chosen = NOTHING,
    gradient: Callable[[Loss], ValueAndGrad] = jax.value_and_grad,
    measure: Callable[[Tree, Tree, Array], dict[str, Array]] | None = None,
) -> Algorithm:
    """Average the changes of shared leaves; the server optimizer gets minus their mean.

    ``personal`` leaves stay with their client, ``frozen`` ones keep their first value everywhere; neither is sent.
    ``gradient`` turns a loss into value and gradient, ``measure`` looks at the uploads of a round.  With a
    `KeptOptimizer` a client's optimizer goes on where its last round ended.
    """
    keeps = isinstance(optimizer, KeptOptimizer)

    def init_server(delta: Tree) -> tuple[Tree, Tree]:
        trained, still = split_personal(delta, frozen)
        shared, _ = split_personal(trained, personal)
        return shared, AveragingState(server_optimizer.init(shared), still)

    def init_client(delta: Tree, client_id: Array) -> Tree:
        del client_id
        trained = split_personal(delta, frozen)[0]
        own = split_personal(trained, personal)[1]
        return KeptState(own, optimizer.init(trained)) if keeps else own

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        own, state = own if keeps else (own, None)
        start = join_personal(server.delta, own)
        state = state if keeps else optimizer.init(start)

        def prox(grads: Tree, delta: Tree) -> Tree:
            return add(grads, scale(mu, subtract(delta, start)))

        def local_loss(delta: Tree, batch: Tree, key: Array) -> Array:
            return loss(join_personal(delta, server.state.frozen), batch, key)

        correct = prox if mu else None
        delta, state, value = local_steps_from(
            gradient(local_loss), optimizer, state, start, shard, step_mask, key, correct
        )
        shared, own = split_like(delta, server.delta)
        loss_value, measured = observed(value)
        weight = shard.samples.astype(loss_value.dtype)
        own = KeptState(own, state) if keeps else own
        return own, Report(subtract(shared, server.delta), weight, loss_value, measured=measured)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        updates, state = server_optimizer.update(scale(-1, mean), server.state.optimizer, server.delta)
        delta = optax.apply_updates(server.delta, updates)
        return server._replace(delta=delta, state=server.state._replace(optimizer=state))

    return Algorithm(init_server, init_client, client_update, aggregate, measure=measure)
