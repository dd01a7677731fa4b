"""Personalised federation: what each hospital keeps for itself while the rest is shared."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.algorithms.averaging import averaging, fedavg
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps
from medvfm_jax.federated.core.personal_parts import Chosen, join_personal, split_personal
from medvfm_jax.federated.core.records import Algorithm, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, scale, select, subtract

NORM_LEAVES = (
    r"(.*/)?[^/]*(norm|bn|ln)[^/]*/[^/]+"  # everything directly inside a module that is called a norm
)


def fedper(gradient: Gradient, optimizer: Optimizer, personal: Chosen) -> Algorithm:
    """FedAvg in which ``personal`` leaves never leave their client (Arivazhagan et al. 2019).

    References:
        Arivazhagan et al. 2019, https://arxiv.org/abs/1912.00818
    """
    return with_own_part(averaging(gradient, optimizer, optax.sgd(1.0), personal=personal))


def fedbn(gradient: Gradient, optimizer: Optimizer, norms: Chosen = NORM_LEAVES) -> Algorithm:
    """FedAvg in which the parameters of normalisation layers stay local (Li et al. 2021).

    References:
        Li et al. 2021, https://arxiv.org/abs/2102.07623
    """
    return with_own_part(averaging(gradient, optimizer, optax.sgd(1.0), personal=norms))


def fedrep(gradient: Gradient, optimizer: Optimizer, personal: Chosen, personal_steps: int) -> Algorithm:
    """FedPer whose clients first train only the personal part, then only the shared one (Collins et al. 2021).

    The first ``personal_steps`` steps a client makes go to its head, all later ones to the body.

    References:
        Collins et al. 2021, https://arxiv.org/abs/2102.07078
    """
    halved = one_then_other(optimizer, personal, personal_steps)
    return with_own_part(averaging(gradient, halved, optax.sgd(1.0), personal=personal))


def ditto(gradient: Gradient, optimizer: Optimizer, strength: float) -> Algorithm:
    """FedAvg, and beside it a personal model v_i of loss + strength/2 |v_i - x|^2 per client (Li et al. 2021).

    Client state: v_i, started at the first delta.  Two backward passes per local step; traffic as FedAvg.

    References:
        Li et al. 2021, https://arxiv.org/abs/2012.04221
    """
    shared = fedavg(gradient, optimizer)

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def pull(grads: Tree, delta: Tree) -> Tree:
            return add(grads, scale(strength, subtract(delta, server.delta)))

        nothing_own = jax.tree.map(lambda x: None, server.delta)
        _, report = shared.client_update(server, nothing_own, shard, step_mask, key)
        own, _, _ = local_steps(gradient, optimizer, own, shard, step_mask, key, pull)
        return own, report

    return shared._replace(
        init_client=lambda delta, client_id: delta,
        client_update=client_update,
        model=lambda server, own: server.delta if own is None else own,
        reads="a second gradient of every batch, for the client's own model",
    )


def with_own_part(algorithm: Algorithm) -> Algorithm:
    """Refuse a pattern for personal parts that matches nothing of the delta, or all of it.  Raises BadFederation."""

    def init_server(delta: Tree) -> tuple[Tree, Tree]:
        shared, state = algorithm.init_server(delta)
        found = {0: "all of it, so that nothing is shared", len(jax.tree.leaves(delta)): "no part of it"}
        if (count := len(jax.tree.leaves(shared))) in found:
            raise BadFederation(
                f"A part of the model stays at its client, but the pattern for personal parts matches {found[count]}."
            )
        return shared, state

    return algorithm._replace(init_server=init_server)


class Phase(NamedTuple):
    """Steps made so far and the state of the optimizer of either part."""

    count: Array
    first: Tree
    second: Tree


def one_then_other(optimizer: Optimizer, first: Chosen, first_steps: int) -> optax.GradientTransformation:
    """Update only the ``first`` leaves for ``first_steps`` steps and only the others from then on."""

    def init(delta: Tree) -> Phase:
        other, chosen = split_personal(delta, first)
        return Phase(jnp.int32(0), optimizer.init(chosen), optimizer.init(other))

    def update(grads: Tree, phase: Phase, delta: Tree) -> tuple[Tree, Phase]:
        (grads_2, grads_1), (delta_2, delta_1) = split_personal(grads, first), split_personal(delta, first)
        updates_1, state_1 = optimizer.update(grads_1, phase.first, delta_1)
        updates_2, state_2 = optimizer.update(grads_2, phase.second, delta_2)
        early = phase.count < first_steps
        updates_1 = select(early, updates_1, scale(0, updates_1))
        updates_2 = select(early, scale(0, updates_2), updates_2)
        state_1 = select(early, state_1, phase.first)
        state_2 = select(early, phase.second, state_2)
        return join_personal(updates_1, updates_2), Phase(phase.count + 1, state_1, state_2)

    return optax.GradientTransformation(init, update)
