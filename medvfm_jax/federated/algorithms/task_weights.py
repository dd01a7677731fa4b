"""Clients as tasks whose weights follow from their losses, or the norms of their changes, from round to round."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.crosstask.loss_weighting import (
    Famo,
    dwa_weights,
    famo_update,
    famo_weights,
    grad_norm_update,
    uncertainty_update,
    uncertainty_weights,
)
from medvfm_jax.federated.algorithms.averaging import fedavg
from medvfm_jax.federated.algorithms.task_conflicts import combined
from medvfm_jax.federated.core.local_training import Gradient, Optimizer
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree


class Known(NamedTuple):
    """What the server remembers of each client.

    Attributes:
        learnt: (clients,), what the rule learns: logits of FAMO, weights of GradNorm less 1, log
            variances of uncertainties.
        last: (clients,), mean local loss of the last round it took part in; 0 before any.
        earlier: (clients,), of the one before.
        first: (clients,), of the first round it took part in.
    """

    learnt: Array
    last: Array
    earlier: Array
    first: Array


class Seen(NamedTuple):
    """What the server sees of a round.

    Attributes:
        losses: (clients,), mean local loss; 0 of who is absent.
        norms: (clients,), of the change; 0 of who is absent.
        present: (clients,) bool.
    """

    losses: Array
    norms: Array
    present: Array


def famo(
    gradient: Gradient, optimizer: Optimizer, clients: int, rate: float = 0.025, decay: float = 0.001
) -> Algorithm:
    """Weights z_i / L_i whose shares z move towards the clients whose loss fell least (FAMO, Liu et al. 2023).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n.
        rate: step size of the logarithms of the shares.
        decay: towards equal shares.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Liu et al. 2023, https://arxiv.org/abs/2306.03792.  Differs: of the changes of whole rounds, with the mean loss
        of a round's local steps in the place of the losses before and after one step.
    """

    def weigh(known: Known, seen: Seen) -> tuple[Array, Array]:
        both = seen.present & (known.last > 0)
        state = famo_update(Famo(known.learnt), known.last, seen.losses, rate, decay, both)
        return famo_weights(state, seen.losses, seen.present), state.logits

    return _weighed(gradient, optimizer, clients, weigh)


def dwa(gradient: Gradient, optimizer: Optimizer, clients: int, temperature: float = 2.0) -> Algorithm:
    """Weights softmax(r / T) with r the ratio of a client's last two losses: who learns slowly counts more (Liu 2019).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n.
        temperature: T.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Liu et al. 2019, https://arxiv.org/abs/1803.10704.  Differs: of the changes of whole rounds, and the losses are
        those of the rounds that the client took part in.
    """

    def weigh(known: Known, seen: Seen) -> tuple[Array, Array]:  # losses of this round count in the next
        return dwa_weights(known.last, known.earlier, temperature, seen.present), known.learnt

    return _weighed(gradient, optimizer, clients, weigh)


def uncertainty(gradient: Gradient, optimizer: Optimizer, clients: int, rate: float = 0.025) -> Algorithm:
    """Weights exp(-s_i), s_i learnt: whose loss stays large counts less (Kendall et al. 2018).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n.
        rate: step size of s, one step a round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Kendall et al. 2018, https://arxiv.org/abs/1705.07115.  Differs: of the changes of whole rounds, s starts at 0
        and makes a step of plain gradient descent in each; weights sum to 1.
    """

    def weigh(known: Known, seen: Seen) -> tuple[Array, Array]:
        learnt = uncertainty_update(known.learnt, seen.losses, rate, seen.present)
        return uncertainty_weights(learnt, seen.present), learnt

    return _weighed(gradient, optimizer, clients, weigh)


def grad_norm(
    gradient: Gradient, optimizer: Optimizer, clients: int, asymmetry: float = 1.5, rate: float = 0.025
) -> Algorithm:
    """Weights that make the clients' changes alike in norm, larger for who learns slowly (GradNorm, Chen et al. 2018).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n.
        asymmetry: how much more those count who learn slowly; 0 for equal norms.
        rate: step size of the weights, one step a round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Chen et al. 2018, https://arxiv.org/abs/1711.02257.  Differs: of the norms of the changes of whole rounds, over
        their mean; the first loss is that of the first round that a client took part in.
    """

    def weigh(known: Known, seen: Seen) -> tuple[Array, Array]:
        weights = grad_norm_update(
            1 + known.learnt, seen.norms, seen.losses, known.first, asymmetry, rate, seen.present
        )
        there = jnp.where(seen.present, weights, 0)
        return there / jnp.maximum(there.sum(), 1e-30), weights - 1

    return _weighed(gradient, optimizer, clients, weigh)


def _weighed(
    gradient: Gradient,
    optimizer: Optimizer,
    clients: int,
    weigh: Callable[[Known, Seen], tuple[Array, Array]],
) -> Algorithm:
    averaging = fedavg(gradient, optimizer)

    def init_server(delta: Tree) -> tuple[Tree, tuple[Tree, Known]]:
        delta, state = averaging.init_server(delta)
        return delta, (state, Known(*[jnp.zeros(clients)] * 4))

    def client_update(
        server: Server, own: Array, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Array, Report]:
        state, _ = server.state
        _, report = averaging.client_update(
            server._replace(state=state), _nothing(server), shard, step_mask, key
        )
        one = jnp.ones_like(report.weight)
        upload = {"change": report.upload, "loss": report.loss}
        return own, report._replace(upload=upload, weight=one, public={"client": own})

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        state, known = server.state
        rows = jnp.where(cohort.present, cohort.public["client"].astype(jnp.int32), clients)
        present = jnp.zeros(clients, bool).at[rows].set(True, mode="drop")

        def of_clients(values: Array) -> Array:
            """Numbers of rows as numbers of clients, 0 of who is absent."""
            return jnp.zeros_like(known.last).at[rows].set(values.astype(known.last.dtype), mode="drop")

        losses = of_clients(uploads["loss"])
        known = known._replace(first=jnp.where(present & (known.first == 0), losses, known.first))
        norms = of_clients(jax.vmap(optax.tree.norm)(uploads["change"]))
        weights, learnt = weigh(known, Seen(losses, norms, present))
        of_rows = jnp.where(cohort.present, weights.at[rows].get(mode="fill", fill_value=0), 0)
        moved = averaging.aggregate(
            server._replace(state=state), combined(of_rows, uploads["change"]), cohort
        )
        known = Known(
            learnt,
            jnp.where(present, losses, known.last),
            jnp.where(present, known.last, known.earlier),
            known.first,
        )
        return moved._replace(state=(moved.state, known))

    return averaging._replace(
        init_server=init_server,
        init_client=lambda delta, client_id: client_id,
        client_update=client_update,
        aggregate=aggregate,
        reduction="stack",
        weights="equal",
        model=lambda server, own: server.delta,
        reads="the loss of its batches, which it uploads",
    )


def _nothing(server: Server) -> Tree:
    """What a client of `fedavg` keeps."""
    return jax.tree.map(lambda _: None, server.delta)
