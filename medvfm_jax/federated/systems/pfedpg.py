"""pFedPG: a generator at the server makes every client its own prompts, and learns from how clients change them.

Source: Yang et al. 2023, "Efficient Model Personalization in Federated Learning via Client-Specific Prompt Generation".
Prompts of client n: P_n = P_base + softmax(P_base Q (D_n K)' / sqrt(h)) D_n V, with a bank D of descriptors, one set
per client.  Having trained them to P_n', the client sends P_n' - P_n, the direction its loss asks for, and the server
moves everything the prompts were made of along it.  Heads stay at the client.
Interpretation: one cross-attention with one head; V is zero at the start, so that all begin with P_base.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer, local_steps, report
from medvfm_jax.federated.core.personal_parts import Chosen, join_personal, split_like, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import scale, subtract
from medvfm_jax.federated.systems.prompt_federation import prompt_and_head_parts
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import System

HEAD = r"head/.*"


class Generator(NamedTuple):
    """Projections, one of each per prompt leaf (d or e, h), and descriptors (clients, slots, e)."""

    query: Tree
    key: Tree
    value: Tree
    descriptors: Array


class GeneratorState(NamedTuple):
    """The generator beside ``Server.delta``, which is P_base, and the optimizer of both."""

    generator: Generator
    optimizer: Tree


class OwnModel(NamedTuple):
    """What a client keeps: its trained prompts and head, and the number of its descriptor, () int32."""

    delta: Tree
    number: Array


def pfedpg(
    gradient: Gradient,
    optimizer: Optimizer,
    clients: int = 64,
    personal: Chosen = HEAD,
    server_optimizer: Optimizer | None = None,
    width: int = 64,
    slots: int = 4,
    seed: int = 0,
) -> Algorithm:
    """Federated prompts of which the server learns the generator.

    ``clients`` is the number of descriptors, at least that of clients: one without a descriptor is excluded and named.

    Every leaf that is not ``personal`` counts as prompts (..., tokens, d).  ``server_optimizer`` (sgd(1.0) unless
    given) gets minus the mean over clients of J' (P_n' - P_n), J the derivative of the prompts by base, projections
    and descriptors.  A client downloads its prompts only; the server must see every upload, so this does not go with
    privacy.  Raises BadFederation.
    """
    if min(clients, width, slots) < 1:
        raise BadFederation(
            f"pfedpg: clients, width and slots must be at least 1, not {clients}, {width}, {slots}."
        )
    server_optimizer = server_optimizer or optax.sgd(1.0)

    def init_server(delta: Tree) -> tuple[Tree, GeneratorState]:
        base, _ = split_personal(delta, personal)
        generator = init_generator(jax.random.key(seed), base, clients, width, slots)
        return base, GeneratorState(generator, server_optimizer.init((base, generator)))

    def init_client(delta: Tree, client_id: Array) -> OwnModel:
        return OwnModel(delta, client_id.astype(jnp.int32))

    def client_update(
        server: Server, own: OwnModel, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[OwnModel, Report]:
        prompts = generate(server.delta, server.state.generator, own.number)
        start = join_personal(prompts, split_personal(own.delta, personal)[1])
        delta, seen, _ = local_steps(gradient, optimizer, start, shard, step_mask, key)
        change = subtract(split_like(delta, prompts)[0], prompts)
        number = own.number.astype(seen.loss.dtype)
        return OwnModel(delta, own.number), report(change, seen, shard.samples, number)

    def aggregate(server: Server, uploads: Tree, cohort: Cohort) -> Server:
        numbers = jnp.round(cohort.public).astype(jnp.int32)
        share = cohort.weights / jnp.maximum(cohort.weights.sum(), 1e-30)

        def prompts_of_all(base: Tree, generator: Generator) -> Tree:
            return jax.vmap(lambda n: generate(base, generator, n))(numbers)

        made_of = (server.delta, server.state.generator)
        _, pull_back = jax.vjp(prompts_of_all, *made_of)
        wanted = jax.tree.map(lambda u: jnp.einsum("n,n...->n...", share.astype(u.dtype), u), uploads)
        updates, state = server_optimizer.update(
            scale(-1, pull_back(wanted)), server.state.optimizer, made_of
        )
        base, generator = optax.apply_updates(made_of, updates)
        return server._replace(delta=base, state=GeneratorState(generator, state))

    return Algorithm(
        init_server,
        init_client,
        client_update,
        aggregate,
        reduction="stack",
        model=lambda server, own: server.delta if own is None else own.delta,
    )


def init_generator(key: Array, base: Tree, clients: int, width: int, slots: int) -> Generator:
    """Random projections and descriptors for prompts ``base``; the values are zero."""
    leaves, structure = jax.tree.flatten(base)
    if not leaves or any(leaf.ndim < 2 for leaf in leaves):
        raise BadFederation("pfedpg: prompts must be arrays (tokens, d); build them with prompt_parts.")
    bank_key, *keys = jax.random.split(key, 1 + 2 * len(leaves))
    dtype = leaves[0].dtype

    def projections(keys: list[Array], widths: list[int]) -> Tree:
        drawn = [jax.random.normal(k, (w, width), dtype) / w**0.5 for k, w in zip(keys, widths, strict=True)]
        return jax.tree.unflatten(structure, drawn)

    return Generator(
        projections(keys[: len(leaves)], [leaf.shape[-1] for leaf in leaves]),
        projections(keys[len(leaves) :], [width] * len(leaves)),
        jax.tree.map(lambda leaf: jnp.zeros((width, leaf.shape[-1]), leaf.dtype), base),
        jax.random.normal(bank_key, (clients, slots, width), dtype),
    )


def generate(base: Tree, generator: Generator, number: Array) -> Tree:
    """Prompts of client ``number`` (), in the structure of ``base``.

    NaN for a number without a descriptor, so that such a client is excluded and named.
    """
    own = jnp.asarray(generator.descriptors).at[number].get(mode="fill", fill_value=jnp.nan)

    def one(tokens: Array, query: Array, key: Array, value: Array) -> Array:
        logits = (tokens @ query) @ (own @ key).T * own.shape[-1] ** -0.5
        return tokens + jax.nn.softmax(logits, axis=-1) @ (own @ value)

    return jax.tree.map(one, base, generator.query, generator.key, generator.value)


SYSTEM = FederatedSystem(
    System(
        description="prompts that a generator at the server makes for every client, heads at the client "
        "(pFedPG, Yang et al. 2023)",
        source="https://arxiv.org/abs/2308.15367",
        adapter=prompt_and_head_parts,
        differences="One cross-attention with one head, zero values at the start; SAM's token embeddings stand for "
        "prompts and its last linear layers for the head.",
    ),
    pfedpg,
)
