"""FedAvgM, FedAdagrad, FedYogi, FedAdam: optimizers fed with minus the mean change of a round.

Written out because the published rules differ from optax: no bias correction, tau outside the root.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from medvfm_jax.federated.algorithms.averaging import fedopt
from medvfm_jax.federated.core.local_training import Gradient, Optimizer
from medvfm_jax.federated.core.records import Algorithm, Tree
from medvfm_jax.federated.core.tree_math import zeros_like

Rule = Literal["adagrad", "yogi", "adam"]
_DIVIDED = "divides it by its own running size, so that the step is as long with noise alone"


def fedavgm(
    gradient: Gradient,
    optimizer: Optimizer,
    server_rate: float = 1.0,
    momentum: float = 0.9,
) -> Algorithm:
    """v <- momentum v + mean change; x <- x + server_rate v (Hsu et al. 2019).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        server_rate: factor on the momentum v.
        momentum: share of v that stays from round to round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Hsu et al. 2019, https://arxiv.org/abs/1909.06335
    """
    algorithm = fedopt(gradient, optimizer, optax.sgd(server_rate, momentum))
    return algorithm._replace(applies="keeps it in its momentum, so that later rounds move by it again")


def fedadagrad(
    gradient: Gradient, optimizer: Optimizer, server_rate: float = 0.1, tau: float = 1e-3
) -> Algorithm:
    """Adaptive server with v <- v + change^2 and no momentum.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        server_rate: step size of the server.
        tau: added to the root of v, so that small v do not give large steps.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Reddi et al. 2021, algorithm 2, https://arxiv.org/abs/2003.00295
    """
    return _adaptive(gradient, optimizer, adaptive_server("adagrad", server_rate, beta1=0.0, tau=tau))


def fedyogi(
    gradient: Gradient, optimizer: Optimizer, server_rate: float = 0.01, tau: float = 1e-3
) -> Algorithm:
    """Adaptive server with v <- v - (1 - beta2) change^2 sign(v - change^2).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        server_rate: step size of the server.
        tau: added to the root of v, so that small v do not give large steps.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Reddi et al. 2021, algorithm 2, https://arxiv.org/abs/2003.00295
    """
    return _adaptive(gradient, optimizer, adaptive_server("yogi", server_rate, tau=tau))


def fedadam(
    gradient: Gradient, optimizer: Optimizer, server_rate: float = 0.1, tau: float = 1e-3
) -> Algorithm:
    """Adaptive server with v <- beta2 v + (1 - beta2) change^2.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        server_rate: step size of the server.
        tau: added to the root of v, so that small v do not give large steps.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Reddi et al. 2021, algorithm 2, https://arxiv.org/abs/2003.00295
    """
    return _adaptive(gradient, optimizer, adaptive_server("adam", server_rate, tau=tau))


def _adaptive(gradient: Gradient, optimizer: Optimizer, server: optax.GradientTransformation) -> Algorithm:
    return fedopt(gradient, optimizer, server)._replace(applies=_DIVIDED)


class AdaptiveState(NamedTuple):
    """First and second moments of the mean change, shaped like the delta."""

    m: Tree
    v: Tree


def adaptive_server(
    rule: Rule, rate: float, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """m <- beta1 m + (1 - beta1) D; v by ``rule``; x <- x + rate m / (sqrt(v) + tau), D the mean change.

    Reddi et al. 2021, algorithm 2, with v starting at tau^2 as there; no bias correction.
    """

    def second(v: jax.Array, d: jax.Array) -> jax.Array:
        if rule == "adagrad":
            return v + d**2
        if rule == "yogi":
            return v - (1 - beta2) * d**2 * jnp.sign(v - d**2)
        return beta2 * v + (1 - beta2) * d**2

    def init(delta: Tree) -> AdaptiveState:
        return AdaptiveState(zeros_like(delta), jax.tree.map(lambda x: jnp.full_like(x, tau**2), delta))

    def update(gradient: Tree, state: AdaptiveState, delta: Tree = None) -> tuple[Tree, AdaptiveState]:
        del delta
        m = jax.tree.map(lambda m, g: beta1 * m - (1 - beta1) * g, state.m, gradient)
        v = jax.tree.map(lambda v, g: second(v, g), state.v, gradient)
        return jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + tau), m, v), AdaptiveState(m, v)

    return optax.GradientTransformation(init, update)
