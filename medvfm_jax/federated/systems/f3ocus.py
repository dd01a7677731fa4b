"""F3OCUS: every client trains the layers whose tangent kernel is largest, and the server spreads the choice.

Source: Saha et al. 2024, "F3OCUS: Federated Finetuning of Vision-Language Foundation Models with Optimal Client Layer
Updating Strategy via Multi-objective Meta-Heuristics" (abstract and project page).
Importance of layer l for client i: S_il = lambda_il / sum_k lambda_ik, with lambda the largest eigenvalue of the
layer's kernel J_l J_l', J_l (images, parameters of l) the gradients of the loss of single images.
Interpretation: the two objectives (sum of importance, even use of layers) are one weighted sum that steepest ascent
over exchanges increases, in place of the paper's meta-heuristics; importance is measured on the first batch of a round
and used in the next one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.personal_parts import leaf_name
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, subtract
from medvfm_jax.federated.systems.layers import layer_of, layers_of, scale_layers
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import SYSTEMS, System


class LayerChoice(NamedTuple):
    """What the server knows: importance (clients, L), all zero before a client's first report, and what to train."""

    importance: Array
    chosen: Array  # (clients, L) bool


def f3ocus(
    gradient: Gradient,
    optimizer: Optimizer,
    clients: int = 64,
    layers: int = 2,
    diversity: float = 1.0,
) -> Algorithm:
    """FedAvg in which client i trains ``layers`` of the L layers of the delta, those chosen for it by the server.

    Until the server has chosen, a client takes its most important ones.  A layer becomes the mean over the clients
    that trained it.  ``clients`` is the size of the server's table, at least their number: those beyond it go on
    choosing for themselves.  Layers are those of ``layers.layer_of``.  Uploads have static shapes: layers that were
    not trained are zeros and are counted as bits.  Measuring costs one gradient per image of a batch and memory for
    all of them.  Every round reports the least and the largest number of clients that trained a layer.  Raises
    BadFederation.
    """
    if min(clients, layers) < 1 or diversity < 0:
        raise BadFederation(
            "f3ocus: clients and layers must be at least 1 and diversity not negative, not "
            f"{clients}, {layers} and {diversity}."
        )

    def init_server(delta: Tree) -> tuple[Tree, LayerChoice]:
        count = len(layers_of(delta))
        if layers > count:
            raise BadFederation(f"f3ocus: the delta has {count} layers, so {layers} cannot be chosen.")
        return delta, LayerChoice(jnp.zeros((clients, count)), jnp.zeros((clients, count), bool))

    def client_update(
        server: Server, number: Array, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Array, Report]:
        names = layers_of(server.delta)
        first = jax.tree.map(lambda x: x[0], shard.batches)
        importance = layer_importance(gradient, server.delta, first, key)
        asked = server.state.chosen.at[number].get(mode="fill", fill_value=False)
        chosen = jnp.where(asked.any(), asked, most_important(importance, layers))

        mask = partial(scale_layers, layers=names, factors=chosen)
        delta, seen, _ = local_steps(gradient, optimizer, server.delta, shard, step_mask, key, mask=mask)
        # What the server must not get distorted by a codec goes beside the upload.
        public = tuple(x.astype(seen.loss.dtype) for x in (number, importance, chosen))
        return number, report(subtract(delta, server.delta), seen, shard.samples, public)

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        number, importance, trained = cohort.public
        weights = cohort.weights[:, None] * trained  # (n, L)
        share = weights / jnp.maximum(weights.sum(0), 1e-30)
        names = layers_of(server.delta)

        def mean(path: tuple, stacked: Array) -> Array:
            own = share[:, names.index(layer_of(leaf_name(path)))]
            return jnp.tensordot(own.astype(stacked.dtype), stacked, 1)

        change = jax.tree.map_with_path(mean, uploads)
        # Absent clients have number 0 as well, so their rows are sent out of bounds and dropped.
        rows = jnp.where(cohort.present, jnp.round(number).astype(jnp.int32), clients)
        table = server.state.importance
        table = table.at[rows].set(importance.astype(table.dtype), mode="drop")
        state = LayerChoice(table, choose_layers(table, layers, diversity))
        return server._replace(delta=add(server.delta, change), state=state)

    def measure(server: Server, uploads: Tree, weights: Array) -> dict[str, Array]:
        del server
        counts = {}
        for path, leaf in jax.tree.leaves_with_path(uploads):
            moved = (leaf != 0).reshape(len(weights), -1).any(1)
            layer = layer_of(leaf_name(path))
            counts[layer] = counts.get(layer, False) | moved
        per_layer = jnp.stack([counts[name].sum() for name in layers_of(uploads)])
        return {"clients_per_layer_min": per_layer.min(), "clients_per_layer_max": per_layer.max()}

    return Algorithm(
        init_server,
        lambda delta, client_id: client_id.astype(jnp.int32),
        client_update,
        aggregate,
        reduction="stack",
        measure=measure,
        reads="the gradients of single images, which choose the layers",
    )


def layer_importance(gradient: Gradient, delta: Tree, batch: Tree, key: Array) -> Array:
    """Batch with a leading axis of B images -> (L,): largest kernel eigenvalues over their sum, 1/L if all are zero."""

    def one(image: Tree) -> Tree:
        return gradient(delta, jax.tree.map(lambda x: x[None], image), key)[1]

    values = kernel_eigenvalues(jax.vmap(one)(batch))
    total = values.sum()
    return jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 1 / len(values))


def kernel_eigenvalues(gradients: Tree) -> Array:
    """Gradients of B images (B, ...) -> largest eigenvalues (L,) of the layers' kernels (B, B)."""
    kernels: dict[str, Array] = {}
    for path, leaf in jax.tree.leaves_with_path(gradients):
        rows = leaf.reshape(leaf.shape[0], -1)
        layer = layer_of(leaf_name(path))
        kernels[layer] = kernels.get(layer, 0) + rows @ rows.T
    stacked = jnp.stack([kernels[name] for name in layers_of(gradients)])
    return jnp.maximum(jnp.linalg.eigvalsh(stacked)[:, -1], 0)


def most_important(importance: Array, layers: int) -> Array:
    """Importance (..., L) -> bool (..., L), the ``layers`` largest; of equals the first."""
    rank = jnp.argsort(jnp.argsort(-importance, axis=-1, stable=True), axis=-1)
    return rank < layers


def choose_layers(importance: Array, layers: int, diversity: float) -> Array:
    """Importance (n, L) -> bool (n, L) with ``layers`` per client, nothing for clients whose importance is all zero.

    From the most important ones on, exchange one layer of one client at a time, the best exchange first, while it
    increases ``objective``: no exchange of one client alone is better than what comes out, though two together may be.
    With diversity 0 every client keeps its most important layers.
    """
    known = importance.any(axis=1)
    clients = jnp.maximum(known.sum(), 1)
    start = most_important(importance, layers) & known[:, None]

    def gains(chosen: Array) -> Array:
        """Change of the objective (n, L out, L in) by every exchange; -inf where there is none."""
        counts = chosen.sum(0).astype(importance.dtype)
        by_importance = importance[:, None, :] - importance[:, :, None]
        by_counts = 2 * (counts[None, :] - counts[:, None] + 1) / clients
        allowed = chosen[:, :, None] & ~chosen[:, None, :]
        return jnp.where(allowed, by_importance - diversity * by_counts, -jnp.inf)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, gain = state
        best = jnp.argmax(gain)
        client, out, new = jnp.unravel_index(best, gain.shape)
        chosen = chosen.at[client, out].set(False).at[client, new].set(True)
        return chosen, gains(chosen)

    # A gain below rounding could be undone by the next exchange, for ever.
    chosen, _ = jax.lax.while_loop(lambda state: state[1].max() > 1e-6, step, (start, gains(start)))
    return chosen


def objective(importance: Array, chosen: Array, diversity: float) -> Array:
    """Importance and choice (n, L) -> sum of chosen importance - diversity / n sum_l (count_l - mean count)^2."""
    clients = jnp.maximum(importance.any(axis=1).sum(), 1)
    counts = chosen.sum(0)
    uneven = ((counts - counts.mean()) ** 2).sum() / clients
    return jnp.where(chosen, importance, 0).sum() - diversity * uneven


SYSTEM = FederatedSystem(
    System(
        description="every client trains a few layers, chosen by their tangent kernels and spread by the server "
        "(F3OCUS, Saha et al. 2024)",
        source="https://arxiv.org/abs/2411.11912",
        adapter=SYSTEMS["med_sa"].adapter,
        differences="The two objectives are one weighted sum, ascended by exchanges instead of meta-heuristics, to a "
        "maximum that may be local; the kernel is of single images' losses; the choice of a round uses the "
        "importance of the one before.",
    ),
    f3ocus,
)
