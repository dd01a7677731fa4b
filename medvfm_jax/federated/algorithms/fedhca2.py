"""FedHCA2: each client has its own model; encoders share a conflict-averse change, decoders attend to each other."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.crosstask.gradient_surgery import cagrad
from medvfm_jax.federated.algorithms.task_conflicts import combined, gram_of, measure_conflicts, rows_of
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.personal_parts import check_decoders, join_personal, leaf_name, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import add, subtract

DECODERS = r".*(decoder|head|hypernetworks|upscaling).*"


class Received(NamedTuple):
    """What the server sends beside the shared model, zero at the start.

    Attributes:
        update: U, of the leaves of encoders; None elsewhere.
        attended: (clients, ...), for each client the change of its decoder out of all decoders'; None elsewhere.
    """

    update: Tree
    attended: Tree


class OwnModel(NamedTuple):
    """What a client keeps.

    Attributes:
        id: which row of ``Received.attended`` is its.
        result: y_i, where its last round ended.
        encoder: () psi_i, how much of U it takes.
        decoder: {layer: ()} beta_i, how much of what its decoder attends to.
    """

    id: Array
    result: Tree
    encoder: Array
    decoder: dict[str, Array]


def fedhca2(
    gradient: Gradient,
    optimizer: Optimizer,
    clients: int,
    c: float = 0.4,
    start: float = 0.1,
    hyper_rate: float = 0.01,
    decoders: str = DECODERS,
) -> Algorithm:
    """Encoders take clip(psi_i) of the conflict-averse change, decoders clip(beta_i) of what they attend to (Lu 2024).

    x_i <- x_i + D_i + clip(psi_i, 0, 1) U on encoder leaves, U = (mean D + c |mean D| g_w / |g_w|) / (1 + c^2) as in
    CAGrad; on decoder leaves x_i <- x_i + D_i + clip(beta_i, 0, 1) softmax(D_i D_j' / sqrt(d)) D_j over all clients j.
    psi_i and beta_i (one for each layer) learn with the gradient of the next round's change, passed back through these
    lines, at the client itself.

    Args:
        gradient: how a client's data enter: (trained, batch, key, whole) -> (loss, gradient), see ``gradient_of``.
        optimizer: optax optimizer of the local steps, started anew in every round.
        clients: n, for as many decoders.
        c: how far U may be from the mean change, in its lengths.
        start: first value of psi and beta.
        hyper_rate: step size of their SGD.
        decoders: regular expression of the paths of leaves that are a decoder's; one that matches none is refused.

    Returns:
        The algorithm, for ``make_round``.

    References:
        Lu et al. 2024, https://arxiv.org/abs/2311.13250.  Differs: psi and beta take plain SGD steps; clients with the
        same tasks are not averaged first, and every client has one decoder; an absent client goes on from its result
        and the last U; the shared model, for sites that took no part, is the mean of the clients' with psi = beta = 1.
    """

    def init_server(delta: Tree) -> tuple[Tree, Received]:
        leaves = jax.tree_util.tree_leaves_with_path(delta)
        check_decoders(decoders, DECODERS, [leaf_name(path) for path, _ in leaves])
        encoder, decoder = split_personal(delta, decoders)
        zeros = jax.tree.map(jnp.zeros_like, encoder)
        attended = jax.tree.map(lambda x: jnp.zeros((clients, *x.shape), x.dtype), decoder)
        return delta, Received(zeros, attended)

    def init_client(delta: Tree, client_id: Array) -> OwnModel:
        own = jnp.full((), start, jnp.result_type(*jax.tree.leaves(delta)))
        return OwnModel(client_id, delta, own, dict.fromkeys(_layers(delta, decoders), own))

    def own_start(server: Server, own: OwnModel) -> Tree:
        received = _of_client(server.state, own.id)
        take = _as_leaves(received, own)
        return jax.tree.map(lambda y, share, r: y + jnp.clip(share, 0, 1) * r, own.result, take, received)

    def client_update(
        server: Server, own: OwnModel, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[OwnModel, Report]:
        first = own_start(server, own)
        result, seen, _ = local_steps(gradient, optimizer, first, shard, step_mask, key)
        change = subtract(result, first)
        received = _of_client(server.state, own.id)
        products = jax.tree.map(
            lambda d, r: jnp.vdot(d, r), change, received
        )  # minus the slope of the shares

        def learnt(share: Array, product: Array) -> Array:
            inside = (share >= 0) & (share <= 1)
            return share + hyper_rate * jnp.where(inside, product, 0)

        on_encoder, on_layers = _summed(products, decoders)
        decoder = {layer: learnt(share, on_layers[layer]) for layer, share in own.decoder.items()}
        own = OwnModel(own.id, result, learnt(own.encoder, on_encoder), decoder)
        return own, report(change, seen, public={"client": own.id})

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        encoder, decoder = split_personal(uploads, decoders)
        share = cohort.present / jnp.maximum(cohort.present.sum(), 1)
        update = encoder
        if jax.tree.leaves(encoder):
            update = combined(cagrad(gram_of(encoder), c, cohort.present) / (1 + c**2), encoder)
        attended = jax.tree.map(lambda x: cross_attention(x, cohort.present), decoder)
        rows = rows_of(cohort, clients)
        kept = jax.tree.map(
            lambda old, new: jnp.zeros_like(old).at[rows].set(new, mode="drop"),
            server.state.attended,
            attended,
        )
        mean = join_personal(update, combined(share, attended))
        delta = add(add(server.delta, combined(share, uploads)), mean)
        return server._replace(delta=delta, state=Received(update, kept))

    def download(server: Server) -> Tree:
        return server.state.update, jax.tree.map(lambda x: x[0], server.state.attended)

    return Algorithm(
        init_server,
        init_client,
        client_update,
        aggregate,
        reduction="stack",
        measure=measure_conflicts,
        download=download,
        model=lambda server, own: server.delta if own is None else own_start(server, own),
        weights="equal",
    )


def cross_attention(changes: Array, present: Array) -> Array:
    """Changes of one leaf (n, ...) -> for each client the others' in the shares softmax_j(D_i D_j' / sqrt(d)).

    Args:
        changes: D, stacked.
        present: (n,) bool, whose count.

    Returns:
        (n, ...), 0 where absent.
    """
    flat = changes.reshape(len(changes), -1)
    scores = flat @ flat.T / jnp.sqrt(jnp.asarray(flat.shape[1], flat.dtype))
    shares = jax.nn.softmax(jnp.where(present, scores, -jnp.inf), axis=-1)
    shares = jnp.where(present[:, None] & present, shares, 0)
    return (shares @ flat).reshape(changes.shape)


def _layer(path: tuple) -> str:
    return leaf_name(path[:-1])


def _layers(delta: Tree, decoders: str) -> list[str]:
    """Names of the modules whose leaves are a decoder's."""
    leaves = jax.tree_util.tree_leaves_with_path(delta)
    return sorted({_layer(path) for path, _ in leaves if re.fullmatch(decoders, leaf_name(path))})


def _of_client(received: Received, client: Array) -> Tree:
    """What one client adds its shares of, as a whole delta."""
    return join_personal(received.update, jax.tree.map(lambda x: x[client], received.attended))


def _as_leaves(delta: Tree, own: OwnModel) -> Tree:
    """The client's share of each leaf."""
    return jax.tree.map_with_path(lambda path, _: own.decoder.get(_layer(path), own.encoder), delta)


def _summed(products: Tree, decoders: str) -> tuple[Array, dict[str, Array]]:
    """Products of leaves (), summed over the encoder and over each layer of the decoder."""
    encoder, layers = jnp.zeros(()), {}
    for path, product in jax.tree_util.tree_leaves_with_path(products):
        if re.fullmatch(decoders, leaf_name(path)):
            layers[_layer(path)] = layers.get(_layer(path), 0) + product
        else:
            encoder = encoder + product
    return encoder, layers
