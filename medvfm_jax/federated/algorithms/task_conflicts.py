"""Clients as tasks whose changes may pull apart: a rule of gradient surgery takes the place of the mean.

Every rule needs the N x N products of the changes alone and returns weights; all clients count equally, however many
images they have, because they are tasks and not shares of one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.crosstask import gradient_surgery
from medvfm_jax.federated.algorithms.averaging import averaging
from medvfm_jax.federated.algorithms.personalise import with_own_part
from medvfm_jax.federated.core.local_training import Gradient, Optimizer
from medvfm_jax.federated.core.personal_parts import NOTHING
from medvfm_jax.federated.core.records import Algorithm, Cohort, Server, Tree

Weigh = Callable[[Array, Array, Array], Array]  # (Gram (n, n), present (n,), key) -> weights (n,)


def pcgrad(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """FedAvg in which each change first loses its part against every other it conflicts with (Yu et al. 2020).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Yu et al. 2020, https://arxiv.org/abs/2001.06782.  Differs: of the changes of whole rounds instead of
        gradients, and their mean instead of their sum.
    """
    return _operated(gradient, optimizer, lambda gram, here, key: gradient_surgery.pcgrad(gram, key, here))


def cagrad(gradient: Gradient, optimizer: Optimizer, c: float = 0.4) -> Algorithm:
    """The change near the mean by which the worst client gains most (CAGrad, Liu et al. 2021).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        c: how far from the mean change, in its lengths; 0 is the mean.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Liu et al. 2021, https://arxiv.org/abs/2110.14048.  Differs: of the changes of whole rounds instead of
        gradients, divided by 1 + c^2 as the authors' code does by default.
    """

    def weigh(gram: Array, here: Array, key: Array) -> Array:
        del key
        return gradient_surgery.cagrad(gram, c, here) / (1 + c**2)

    return _operated(gradient, optimizer, weigh)


def mgda(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """The shortest change in the hull of the clients' changes, good for all of them (Sener and Koltun 2018).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Sener and Koltun 2018, https://arxiv.org/abs/1810.04650.  Differs: of the changes of whole rounds instead of
        gradients.
    """
    return _operated(gradient, optimizer, lambda gram, here, key: gradient_surgery.mgda(gram, here))


def nash_mtl(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """The bargain in which no client gains relatively more than another (Navon et al. 2022), weights summing to 1.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Navon et al. 2022, https://arxiv.org/abs/2202.01017.  Differs: of the changes of whole rounds instead of
        gradients, and scaled to weights that sum to 1, because the length of the bargain says nothing of the changes'.
    """

    def weigh(gram: Array, here: Array, key: Array) -> Array:
        del key
        weights = gradient_surgery.nash_mtl(gram, here)
        return weights / jnp.maximum(weights.sum(), jnp.finfo(weights.dtype).tiny)

    return _operated(gradient, optimizer, weigh)


def imtl_g(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """The change with equal projections on the changes of all clients (IMTL-G), weights summing to 1.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Liu et al. 2021 (ICLR), compared by Navon et al. 2022,
        https://arxiv.org/abs/2202.01017.  Differs: of the changes of whole rounds instead of gradients.
    """
    return _operated(gradient, optimizer, lambda gram, here, key: gradient_surgery.imtl_g(gram, here))


def fedbone(gradient: Gradient, optimizer: Optimizer, personal: str) -> Algorithm:
    """PCGrad on the shared part, while ``personal`` leaves never leave their client (FedBone, Chen et al. 2023).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        personal: regular expression of the paths of leaves that stay with their client.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Chen et al. 2023, https://arxiv.org/abs/2306.17465.  Interpretation: the abstract was read. Conflicting changes
        are projected as in PCGrad; the general model is not split off to the server, and clients' data stay with them.
    """

    def weigh(gram: Array, here: Array, key: Array) -> Array:
        return gradient_surgery.pcgrad(gram, key, here)

    return with_own_part(_operated(gradient, optimizer, weigh, personal))


def gram_of(uploads: Tree) -> Array:
    """Stacked trees (n, ...) -> their products (n, n), leaf by leaf, so that no long vector is made."""
    flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(uploads)]
    return sum(x @ x.T for x in flat)


def combined(weights: Array, uploads: Tree) -> Tree:
    """Weighted sum of stacked trees."""
    return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), uploads)


def conflicts(gram: Array, present: Array) -> dict[str, Array]:
    """Of the pairs of changes: the least cosine, and the share below 0; 1 and 0 where there is no pair."""
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
    sizes = lengths[:, None] * lengths
    pair = jnp.triu(present[:, None] & present, 1) & (sizes > 0)
    cosine = jnp.where(pair, gram / jnp.where(sizes > 0, sizes, 1), 1)
    share = (pair & (cosine < 0)).sum() / jnp.maximum(pair.sum(), 1)
    return {"least_cosine": cosine.min(), "conflicting_pairs": share.astype(gram.dtype)}


def measure_conflicts(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
    """``Algorithm.measure`` of rules for changes that pull apart: ``conflicts`` of those that arrived."""
    del server
    return conflicts(gram_of(uploads), weights > 0)


def rows_of(cohort: Cohort, clients: int) -> Array:
    """Whose each upload is (n,), by ``Report.public``; ``clients``, one too many, where none arrived (mode="drop")."""
    return jnp.where(cohort.present, cohort.public["client"].astype(jnp.int32), clients)


def _operated(gradient: Gradient, optimizer: Optimizer, weigh: Weigh, personal: str = NOTHING) -> Algorithm:
    mean = averaging(gradient, optimizer, optax.sgd(1.0), personal=personal)

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        weights = weigh(gram_of(uploads), cohort.present, cohort.key)
        return mean.aggregate(server, combined(weights, uploads), cohort._replace(public=()))

    return mean._replace(aggregate=aggregate, reduction="stack", measure=measure_conflicts)
