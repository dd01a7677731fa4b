"""IAT: encoder and decoder keep opposite low-rank factors at their client, and changes of both kinds stay apart."""

import re
from functools import partial

import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.algorithms.averaging import averaging
from medvfm_jax.federated.algorithms.fedhca2 import DECODERS
from medvfm_jax.federated.core.kept_optimizer import without_optimizer
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, with_term
from medvfm_jax.federated.core.lora_aggregation import (
    aggregation_error,
    collinearity,
    factors_of,
    names_in_pair,
)
from medvfm_jax.federated.core.personal_parts import check_decoders, join_personal
from medvfm_jax.federated.core.records import Algorithm, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add


def iat(
    gradient: Gradient, optimizer: Optimizer, orthogonality: float = 0.1, decoders: str = DECODERS
) -> Algorithm:
    """Encoder: average b, keep a; decoder: average a, keep b; keep shared and own change orthogonal (Zhao et al. 2026).

    Scanners differ in what comes in, annotators in what goes out: of ``a @ b`` an encoder's client keeps the factor
    that reads its input, a decoder's the one that writes its output.  The local loss has the term ``orthogonality``
    times the mean over sites of the squared cosine between what either factor's change of this round does to the
    update, see ``collinearity``.  "aggregation_error" is what averaging one factor changes in the mean of the updates,
    |sum_i p_i (a_i - mean a)(b_i - mean b)|_F, with the factors that no client sends (in a simulation alone).

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round unless it is ``kept``.
        orthogonality: weight of the squared cosine in the local loss.
        decoders: regular expression of the sites of the decoder, full match; all others are the encoder's.
            One that matches no site is refused.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Zhao et al. 2026, https://arxiv.org/abs/2606.08687.  Interpretation: of the paper its abstract was at hand;
        which factor stays where, the term (between changes of a round, damped where they are small) and its weight are
        our reading of it.
    """

    def own_factors(delta: Tree) -> frozenset[str]:
        found: set[str] = set()
        pairs = factors_of(delta)
        check_decoders(decoders, DECODERS, pairs)
        for pair in pairs:
            name_a, name_b = names_in_pair(pair)
            found.add(name_b if re.fullmatch(decoders, pair) else name_a)
        return frozenset(found)

    make = partial(averaging, optimizer=optimizer, server_optimizer=optax.sgd(1.0), personal=own_factors)
    base = make(gradient)

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        start = factors_of(join_personal(server.delta, without_optimizer(own)))

        def apart(delta: Tree, batch: Tree) -> Array:
            del batch
            now = factors_of(delta)
            each = [collinearity(start[pair], now[pair]).ravel() for pair in start]
            return orthogonality * jnp.concatenate(each).mean()

        held = with_term(gradient, apart) if orthogonality else gradient
        return make(held).client_update(server, own, shard, step_mask, key)

    def measure(server: Server, uploads: Tree, weights: Array, states: Tree) -> dict[str, Array]:
        shared = add(server.delta, uploads)
        return aggregation_error(join_personal(shared, without_optimizer(states)), weights)

    return base._replace(client_update=client_update, measure=measure, measures_own=True)
