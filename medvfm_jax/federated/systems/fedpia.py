"""FedPIA: adapters are permuted to fit each other before they are averaged, at the server and at every client.

Source: Saha et al. 2024, "FedPIA: Permuting and Integrating Adapters leveraging Wasserstein Barycenters" (abstract).
Interpretation: transport is between single neurons with squared distances; the barycentre starts from the last global
adapter; a client "integrates" the global adapter by starting from (1 - blend) its own + blend the permuted global one.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.personal_parts import join_personal, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, subtract
from medvfm_jax.federated.systems.neuron_alignment import align, barycentre, neuron_leaves
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import SYSTEMS, System


def fedpia(gradient: Gradient, optimizer: Optimizer, blend: float = 0.5, iterations: int = 2) -> Algorithm:
    """Server: Wasserstein barycentre of the clients' adapters.  Client: permute the global adapter, blend, train.

    A client keeps its trained adapter (bottlenecks, low-rank pairs); all other leaves are averaged as in FedAvg.
    With blend = 1 and adapters that keep their order this is FedAvg.  The server looks at every upload, so this does
    not go with privacy.  Raises BadFederation for a blend outside [0, 1], no iteration or a delta without adapters.
    """
    if not 0 <= blend <= 1 or iterations < 1:
        raise BadFederation(
            f"fedpia: blend must be in [0, 1] and iterations at least 1, not {blend} and {iterations}."
        )

    def init_server(delta: Tree) -> tuple[Tree, Tree]:
        if not neuron_leaves(delta):
            raise BadFederation("fedpia has nothing to permute: use bottleneck or low-rank adapters.")
        return delta, ()

    def init_client(delta: Tree, client_id: Array) -> Tree:
        del client_id
        return split_personal(delta, neuron_leaves)[1]

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        rest, adapters = split_personal(server.delta, neuron_leaves)
        blended = jax.tree.map(lambda o, g: (1 - blend) * o + blend * g, own, align(adapters, own))
        start = join_personal(rest, blended)
        delta, seen, _ = local_steps(gradient, optimizer, start, shard, step_mask, key)
        _, own = split_personal(delta, neuron_leaves)
        return own, report(subtract(delta, server.delta), seen, shard.samples)

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        deltas = add(server.delta, uploads)  # the stacked axis n broadcasts against the server's delta
        return server._replace(delta=barycentre(deltas, cohort.weights, server.delta, iterations))

    def measure(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
        """Mean squared distance of the adapters to the global one that alignment takes away."""
        deltas = add(server.delta, uploads)
        aligned = jax.vmap(align, (0, None))(deltas, server.delta)
        share = weights / jnp.maximum(weights.sum(), 1e-30)

        def squared(stacked: Tree) -> Array:
            away = jax.vmap(lambda d: optax.tree.norm(subtract(d, server.delta), squared=True))(stacked)
            return (share * away).sum()

        return {"distance_before_alignment": squared(deltas), "distance_after_alignment": squared(aligned)}

    return Algorithm(init_server, init_client, client_update, aggregate, reduction="stack", measure=measure)


SYSTEM = FederatedSystem(
    System(
        description="bottleneck adapters, permuted by optimal transport before they are averaged and before a client "
        "blends them with its own (FedPIA, Saha et al. 2024)",
        source="https://arxiv.org/abs/2412.14424",
        adapter=SYSTEMS["med_sa"].adapter,
        differences="Transport between single neurons, barycentre from the last global adapter, integration by "
        "blending weights; the mask decoder is averaged.",
    ),
    fedpia,
)
