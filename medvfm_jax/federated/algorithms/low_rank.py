"""Federated LoRA that averages: FedIT, FFA-LoRA, RoLoRA, FedSA-LoRA, HetLoRA.

Site update ``a @ b``, a random and b zero at the start.  All other leaves of the delta are averaged as in FedAvg.
Every algorithm reports the exact aggregation error of its round.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.algorithms.averaging import averaging
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report, with_term
from medvfm_jax.federated.core.lora_aggregation import (
    Factors,
    aggregation_error,
    factors_of,
    keep_rank,
    names_of_a,
    names_of_b,
    product_norm,
    replace_factors,
)
from medvfm_jax.federated.core.personal_parts import join_personal, split_personal
from medvfm_jax.federated.core.records import Algorithm, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, select, zeros_like


def fedit(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """Average a and b apart, which is not the average of their products (Zhang et al. 2024).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Zhang et al. 2024, https://arxiv.org/abs/2305.05644
    """
    return averaging(gradient, optimizer, optax.sgd(1.0), measure=_error_of_changes)


def ffa_lora(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """Freeze a at its common start, train and average b only (Sun et al. 2024).

    Exact, half the traffic, and noise enters the product linearly.  The aggregation error is zero by construction.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Sun et al. 2024, https://arxiv.org/abs/2403.12313
    """
    base = averaging(gradient, optimizer, optax.sgd(1.0), frozen=names_of_a)
    return base._replace(measure=_no_error)


def fedsa_lora(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """Train both, share a, keep b at the client (Guo et al. 2025); no products are ever averaged.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Guo et al. 2025, https://arxiv.org/abs/2410.01463
    """
    base = averaging(gradient, optimizer, optax.sgd(1.0), personal=names_of_b)
    return base._replace(measure=_no_error)


def rolora(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """Even rounds train and average b, odd rounds a, so that every round is exact (Chen et al. 2024).

    One static message holds both factors, one of them zero: on a real wire half the counted bits are not needed.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Chen et al. 2024, https://arxiv.org/abs/2409.02346
    """

    def alternate(server: Server, tree: Tree) -> Tree:
        for rest, names in ((0, names_of_a), (1, names_of_b)):
            others, chosen = split_personal(tree, names)
            chosen = select(server.round % 2 == rest, zeros_like(chosen), chosen)
            tree = join_personal(others, chosen)
        return tree

    return averaging(gradient, optimizer, optax.sgd(1.0), update_mask=alternate, measure=_error_of_changes)


class RankState(NamedTuple):
    """Rank of one client's factors; () int32."""

    rank: Array


def client_ranks(ranks: Sequence[int] | None, delta: Tree, client_id: Array) -> RankState:
    """Rank of a client by its id; without any everybody has the full rank of the delta's widest pair."""
    full = max(f.a.shape[-1] for f in factors_of(delta).values())
    if not ranks:
        return RankState(jnp.int32(full))
    return RankState(jnp.asarray(ranks, jnp.int32)[client_id])


def restrict(delta: Tree, rank: Array) -> Tree:
    """Keep the first ``rank`` directions of every pair."""
    return replace_factors(delta, {name: keep_rank(f, rank) for name, f in factors_of(delta).items()})


def hetlora(
    gradient: Gradient,
    optimizer: Optimizer,
    ranks: Sequence[int] | None = None,
    prune: float = 1.0,
    penalty: float = 0.0,
) -> Algorithm:
    """Clients of different rank: truncate the server's factors, train, average zero-padded with weights |a_i b_i|_F.

    With ``prune`` = gamma < 1 a client drops to rank floor(gamma r_i) when training has shrunk the norm of what lies
    beyond it; ``penalty`` encourages that (Cho et al. 2024).  The norm is over all sites together, and so is the rank:
    the paper leaves both per layer open.  Uploads are the factors, not their changes.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        ranks: rank of each client in order, at most the server's; None: all have the server's.
        prune: gamma: share of its rank to which a client may drop in a round; 1 never does.
        penalty: weight of |a_tail| |b_tail| in the local loss.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Cho et al. 2024, https://arxiv.org/abs/2401.06432.  Interpretation: the norm is over all sites together, and
        so is the rank; the paper leaves both per layer open.
    """

    def tail_norm(delta: Tree, rank: Array) -> Array:
        kept = jnp.maximum(jnp.floor(prune * rank).astype(rank.dtype), 1)
        return sum(_tail(f, kept, rank) for f in factors_of(delta).values())

    def client_update(
        server: Server, own: RankState, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[RankState, Report]:
        def tail(delta: Tree, batch: Tree) -> Array:
            del batch
            return penalty * tail_norm(delta, own.rank)

        start = restrict(server.delta, own.rank)
        penalised = with_term(gradient, tail) if penalty else gradient
        delta, seen, _ = local_steps(penalised, optimizer, start, shard, step_mask, key)
        delta = restrict(delta, own.rank)
        if prune < 1:
            smaller = jnp.maximum(jnp.floor(prune * own.rank).astype(own.rank.dtype), 1)
            shrunk = tail_norm(delta, own.rank) < tail_norm(start, own.rank)
            own = RankState(jnp.where(shrunk, smaller, own.rank))
            delta = restrict(delta, own.rank)
        squared = sum((product_norm(f) ** 2).sum() for f in factors_of(delta).values())
        return own, report(delta, seen, jnp.sqrt(squared))

    return Algorithm(
        lambda delta: (delta, ()),
        lambda delta, client_id: client_ranks(ranks, delta, client_id),
        client_update,
        lambda server, mean, cohort: server._replace(delta=mean),
        measure=lambda server, uploads, weights: aggregation_error(uploads, weights),
        weights="upload",
        uploads="model",
    )


def _tail(factors: Factors, first: Array, last: Array) -> Array:
    index = jnp.arange(factors.a.shape[-1])
    inside = (index >= first) & (index < last)
    a, b = jnp.where(inside, factors.a, 0), jnp.where(inside[:, None], factors.b, 0)
    squares = ((a**2).sum() * (b**2).sum()).astype(factors.a.dtype)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _error_of_changes(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
    return aggregation_error(add(server.delta, uploads), weights)


def _no_error(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
    del server, uploads
    zero = jnp.zeros((), weights.dtype)
    return {"aggregation_error": zero, "aggregation_error_relative": zero}
