"""Algorithms whose server averages the clients' changes: FedAvg, FedProx, FedSharp, a server optimizer on top.

One implementation, ``averaging``, serves them and the personalised ones; the factories say which formula results.
x is the server's delta, y_i the result of client i, p_i its share of the samples.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.kept_optimizer import KeptOptimizer, KeptState, without_optimizer
from medvfm_jax.federated.core.local_training import (
    Gradient,
    Observed,
    Optimizer,
    Whole,
    local_steps,
    report,
    unchanged,
)
from medvfm_jax.federated.core.personal_parts import (
    NOTHING,
    Chosen,
    join_personal,
    split_like,
    split_personal,
)
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, subtract


def fedavg(gradient: Gradient, optimizer: Optimizer, server_rate: float = 1.0) -> Algorithm:
    """x <- x + server_rate sum_i p_i (y_i - x) (McMahan et al. 2017).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        server_rate: factor on the mean change; 1 replaces the model by the mean.

    Returns:
        The algorithm, for ``make_round``.

    References:
        McMahan et al. 2017, https://arxiv.org/abs/1602.05629
    """
    return averaging(gradient, optimizer, optax.sgd(server_rate))


def fedprox(gradient: Gradient, optimizer: Optimizer, mu: float) -> Algorithm:
    """FedAvg with mu/2 |y - x|^2 added to each local loss (Li et al. 2020).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        mu: weight of the proximal term.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Li et al. 2020, https://arxiv.org/abs/1812.06127
    """
    return averaging(gradient, optimizer, optax.sgd(1.0), mu=mu)


def fedopt(gradient: Gradient, optimizer: Optimizer, server_optimizer: Optimizer) -> Algorithm:
    """Feed minus the mean change to any optax optimizer on the server (Reddi et al. 2021).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        server_optimizer: optax optimizer that is fed minus the mean change.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Reddi et al. 2021, https://arxiv.org/abs/2003.00295
    """
    return averaging(gradient, optimizer, server_optimizer)


def fedsharp(gradient: Gradient, optimizer: Optimizer, rho: float = 0.05) -> Algorithm:
    """FedAvg whose clients use the gradient at y + rho g / |g|, g = grad(y), so that they seek flat minima.

    Published as FedSAM (Qu et al. 2022; Caldarola et al. 2022); renamed because SAM is Segment Anything here.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        rho: radius of the ascent step, in the l2 norm of the delta.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Qu et al. 2022, https://arxiv.org/abs/2206.02618
        Caldarola et al. 2022, https://arxiv.org/abs/2203.11834
    """
    base = averaging(sharpness_aware(gradient, rho), optimizer, optax.sgd(1.0))
    return base._replace(reads="a second gradient of the same batch")


def sharpness_aware(gradient: Gradient, rho: float) -> Gradient:
    """Loss at y, gradient at y + rho g / |g|; a zero gradient moves nowhere."""

    def ascend(
        trained: Tree, batch: Tree, key: Array, whole: Whole = unchanged
    ) -> tuple[Array | Observed, Tree]:
        value, grads = gradient(trained, batch, key, whole)
        norm = optax.tree.norm(grads)
        worst = add(trained, scale(rho / jnp.where(norm > 0, norm, 1), grads))
        return value, gradient(worst, batch, key, whole)[1]

    return ascend


class AveragingState(NamedTuple):
    """State of the server optimizer; leaves of the delta that nobody trains."""

    optimizer: Tree
    frozen: Tree


def averaging(
    gradient: Gradient,
    optimizer: Optimizer,
    server_optimizer: Optimizer,
    mu: float = 0.0,
    personal: Chosen = NOTHING,
    frozen: Chosen = NOTHING,
    update_mask: Callable[[Server, Tree], Tree] = lambda server, updates: updates,
    measure: Callable[[Tree, Tree, Array], dict[str, Array]] | None = None,
) -> Algorithm:
    """Average the changes of shared leaves; the server optimizer gets minus their mean.

    ``personal`` leaves stay with their client, ``frozen`` ones keep their first value everywhere; neither is sent.
    ``update_mask`` says which updates of the local optimizer are made in a round: it zeroes those of parts that wait.
    ``measure`` looks at the uploads of a round.  With a `KeptOptimizer` a client's optimizer goes on where its last
    round ended.
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

        def prox(grads: Tree, delta: Tree) -> Tree:
            return add(grads, scale(mu, subtract(delta, start)))

        of_trained = partial(gradient, whole=lambda delta: join_personal(delta, server.state.frozen))
        correct, mask = prox if mu else None, partial(update_mask, server)
        delta, seen, state = local_steps(
            of_trained, optimizer, start, shard, step_mask, key, correct, mask, state
        )
        shared, own = split_like(delta, server.delta)
        own = KeptState(own, state) if keeps else own
        return own, report(subtract(shared, server.delta), seen, shard.samples)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        del cohort
        updates, state = server_optimizer.update(scale(-1, mean), server.state.optimizer, server.delta)
        delta = optax.apply_updates(server.delta, updates)
        return server._replace(delta=delta, state=server.state._replace(optimizer=state))

    def model(server: Server, own: Tree) -> Tree:
        shared = join_personal(server.delta, server.state.frozen)
        return shared if own is None else join_personal(shared, without_optimizer(own))

    return Algorithm(init_server, init_client, client_update, aggregate, measure=measure, model=model)
