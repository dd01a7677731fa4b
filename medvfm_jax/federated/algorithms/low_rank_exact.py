"""Federated LoRA whose server looks at every pair: FLoRA, FlexLoRA, FedEx-LoRA, LoRA-FAIR.

FLoRA and FedEx-LoRA change the frozen base as well: their model, and what their gradient is asked at, is a pair (delta,
base) with ``base`` a dict {site: dense increment (..., in, out)} of what ``a @ b`` of that site is added to, kept in
``Server.state`` as ``BaseChange``; ``base_increments`` makes one delta of the pair.
None of them goes with privacy, whose noise is on a sum.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.algorithms.low_rank import RankState, client_ranks, restrict
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report, unchanged
from medvfm_jax.federated.core.lora_aggregation import (
    Factors,
    aggregation_error,
    factors_of,
    fair_correction,
    mean,
    product,
    replace_factors,
    residual,
    stack,
    truncate,
)
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree


class BaseChange(NamedTuple):
    """What was added to the frozen base: {site as in ``factors_of``: dense increment (..., in, out)}."""

    dense: dict[str, Array]


def flora(
    gradient: Gradient,
    optimizer: Optimizer,
    clients: int,
    ranks: Sequence[int] | None = None,
) -> Algorithm:
    """Stack all factors, add their exact weighted product to the base, start new factors (Wang et al. 2024).

    New factors: a uniform in +-1/sqrt(in), b zero.  Clients may have different ranks.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        clients: n, from which the download of n stacked pairs is counted.
        ranks: rank of each client in order, at most the server's; None: all have the server's.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Wang et al. 2024, https://arxiv.org/abs/2409.05976
    """

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        pairs, base = factors_of(uploads), server.state.dense
        base = {site: base[site] + product(stack(f, cohort.weights)) for site, f in pairs.items()}
        averaged = _mean(uploads, cohort.weights)
        fresh = {
            site: _fresh(jax.random.fold_in(cohort.key, i), f)
            for i, (site, f) in enumerate(factors_of(averaged).items())
        }
        return server._replace(delta=replace_factors(averaged, fresh), state=BaseChange(base))

    return _on_base(_stacking(gradient, optimizer, aggregate, ranks), clients)


def fedex_lora(gradient: Gradient, optimizer: Optimizer, clients: int) -> Algorithm:
    """Average a and b, and add what that misses, sum_i p_i a_i b_i - mean(a) mean(b), to the base (Singhal 2024).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        clients: n, from which the download of the residual's n pairs of factors is counted.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Singhal et al. 2024, https://arxiv.org/abs/2410.09432
    """

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        pairs, base = factors_of(uploads), server.state.dense
        base = {site: base[site] + product(residual(f, cohort.weights)) for site, f in pairs.items()}
        return server._replace(delta=_mean(uploads, cohort.weights), state=BaseChange(base))

    return _on_base(_stacking(gradient, optimizer, aggregate), clients)


def flexlora(gradient: Gradient, optimizer: Optimizer, ranks: Sequence[int] | None = None) -> Algorithm:
    """Best approximation of sum_i p_i a_i b_i at the server's rank; a client takes its first r_i directions.

    The mean product is never formed: QR of the stacks and a small SVD (Bai et al. 2024).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        ranks: rank of each client in order, at most the server's; None: all have the server's.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Bai et al. 2024, https://arxiv.org/abs/2402.11505
    """

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        best = {
            site: truncate(stack(f, cohort.weights), f.a.shape[-1]) for site, f in factors_of(uploads).items()
        }
        return server._replace(delta=replace_factors(_mean(uploads, cohort.weights), best))

    return _stacking(gradient, optimizer, aggregate, ranks)


def lora_fair(gradient: Gradient, optimizer: Optimizer, ridge: float = 0.01) -> Algorithm:
    """Average a and b, then correct b so that the product is nearest to the mean product (Bian et al. 2024).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        ridge: added to the diagonal of mean(a)^T mean(a) when the correction of b is solved for.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Bian et al. 2024, https://arxiv.org/abs/2411.14961
    """

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        fixed = {}
        for site, f in factors_of(uploads).items():
            centre = mean(f, cohort.weights)
            fixed[site] = Factors(centre.a, centre.b + fair_correction(f, cohort.weights, ridge))
        return server._replace(delta=replace_factors(_mean(uploads, cohort.weights), fixed))

    return _stacking(gradient, optimizer, aggregate)


def _stacking(
    gradient: Gradient,
    optimizer: Optimizer,
    aggregate: Callable[[Server, Tree, Cohort], Server],
    ranks: Sequence[int] | None = None,
) -> Algorithm:
    """Clients train from the server's factors, cut to their rank, and upload the factors themselves."""

    def client_update(
        server: Server, own: RankState, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[RankState, Report]:
        at = partial(gradient, whole=partial(_pair, server) if server.state else unchanged)
        start = restrict(server.delta, own.rank)
        delta, seen, _ = local_steps(at, optimizer, start, shard, step_mask, key)
        return own, report(restrict(delta, own.rank), seen, shard.samples)

    return Algorithm(
        lambda delta: (delta, ()),
        lambda delta, client_id: client_ranks(ranks, delta, client_id),
        client_update,
        aggregate,
        reduction="stack",
        uploads="model",
        measure=lambda server, uploads, weights: aggregation_error(uploads, weights),
    )


def _on_base(algorithm: Algorithm, clients: int) -> Algorithm:
    """Let the algorithm keep a change of the base, zero at the start; clients download ``clients`` pairs per site."""
    return algorithm._replace(
        init_server=lambda delta: (delta, _zero_base(delta)),
        model=lambda server, own: _pair(server, server.delta),
        download=lambda server: _with_stack(server, clients),
    )


def _pair(server: Server, delta: Tree) -> tuple[Tree, dict[str, Array]]:
    """What a model is made of."""
    return delta, server.state.dense


def _zero_base(delta: Tree) -> BaseChange:
    pairs = factors_of(delta).items()
    return BaseChange({site: jnp.zeros((*f.a.shape[:-1], f.b.shape[-1]), f.a.dtype) for site, f in pairs})


def _mean(uploads: Tree, weights: Array) -> Tree:
    share = weights / jnp.where(weights.sum() > 0, weights.sum(), 1)
    return jax.tree.map(lambda x: jnp.tensordot(share.astype(x.dtype), x, 1), uploads)


def _fresh(key: Array, factors: Factors) -> Factors:
    bound = factors.a.shape[-2] ** -0.5
    a = jax.random.uniform(key, factors.a.shape, factors.a.dtype, -bound, bound)
    return Factors(a, jnp.zeros_like(factors.b))


def _with_stack(server: Server, clients: int) -> tuple[Tree, Tree]:
    """The delta and ``clients`` pairs per site; only shapes matter."""
    pairs = factors_of(server.delta)
    return server.delta, jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *x.shape)), pairs)
