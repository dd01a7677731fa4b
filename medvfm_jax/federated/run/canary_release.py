"""The mechanism of a run as an adversary sees it: all its rounds with a canary as one client or patient more.

Clipping, codec, sampling and noise are those of the run; what they are applied to is small, the canary alone:
what the others send only shifts the scores of both kinds of runs, and noise is added entry by entry, so a few dozen
entries show what millions would.  The aggregation that follows (moments, momentum, an exact average of factors) is
post-processing, which cannot make a release less private, and is left out, and so are masks (`MASKS`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.core.records import Algorithm, Codec, Cohort, Privacy, Report, Server, Shard, Tree
from medvfm_jax.federated.privacy import PatientBatch, patient_gradient
from medvfm_jax.federated.privacy.discrete import Discrete, decode_sum, encode
from medvfm_jax.federated.rounds.federation import make_round

ENTRIES = 64  # of the canary
MASKS = (
    "masks of secure aggregation, which cancel in the sum to the last bit, and rounds in which more than the fewest "
    "clients answer, whose sum holds more noise"
)

Release = Callable[[Array, Tree], Tree]


def zeros(entries: int = ENTRIES) -> Tree:
    """What a canary and a release look like: leaves (entries,)."""
    return {"canary": jnp.zeros(entries)}


def client_release(privacy: Privacy, codec: Codec, rounds: int, rate: float) -> Release:
    """``release(key, update) -> sum of the means of all rounds``, ``update`` the upload of one client more.

    The client is drawn with ``rate`` in every round, as the accountant assumes.  Jittable.
    """
    federation = make_round(_sender(), codec, privacy, "vmap")

    def release(key: Array, update: Tree) -> Tree:
        draw_key, key = jax.random.split(key)
        joins = jax.random.bernoulli(draw_key, rate, (rounds, 1))
        batches = jax.tree.map(lambda x: x[None, None], update)
        shard = Shard(batches, jnp.ones(1))
        start = federation.init(jax.tree.map(jnp.zeros_like, update), shard)

        def one(carry: Tree, joined: Array) -> tuple[Tree, None]:
            server, clients = carry
            server, clients, _ = federation.round(server, clients, shard, joined, jnp.ones(1, int), key)
            return (server, clients), None

        (server, _), _ = jax.lax.scan(one, jax.tree.map(lambda x: jnp.asarray(x, x.dtype), start), joins)
        return server.delta

    return release


def noisy_sum_release(mechanism: Discrete, answered: int, rounds: int) -> Release:
    """``release(key, update) -> sum of the means of all rounds`` where the clients add the noise.

    One of the ``answered`` clients holds the canary, the others nothing but their noise.  The grid is that of the run,
    for as many entries as the canary has.
    """

    def release(key: Array, update: Tree) -> Tree:
        size = sum(x.size for x in jax.tree.leaves(update))
        small = mechanism._replace(size=size)
        nothing = jax.tree.map(jnp.zeros_like, update)

        def one(total: Tree, key: Array) -> tuple[Tree, None]:
            rotation_key, *keys = jax.random.split(key, answered + 1)
            sent = [encode(small, k, rotation_key, nothing if i else update) for i, k in enumerate(keys)]
            mean = decode_sum(small, rotation_key, sum(sent), update)
            return jax.tree.map(jnp.add, total, mean), None

        start = jax.tree.map(jnp.zeros_like, update)
        return jax.lax.scan(one, start, jax.random.split(key, rounds))[0]

    return release


def _sender() -> Algorithm:
    """Every client sends its batch as it is; the server adds up the means."""

    def client_update(
        server: Server, state: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        del server, step_mask, key
        upload = jax.tree.map(lambda x: x[0], shard.batches)
        return state, Report(upload, shard.samples, jnp.zeros(()))

    def aggregate(server: Server, upload: Tree, cohort: Cohort) -> Server:
        del cohort
        return server._replace(delta=jax.tree.map(jnp.add, server.delta, upload))

    return Algorithm(lambda delta: (delta, ()), lambda delta, client: (), client_update, aggregate)


def patient_release(privacy: Privacy, steps: int, rate: float) -> Release:
    """``release(key, update) -> sum of the private gradients of all steps``, ``update`` one patient's gradient.

    The patient is drawn with ``rate`` in every step.  Jittable.
    """
    gradient = patient_gradient(_inner_product, privacy)

    def release(key: Array, update: Tree) -> Tree:
        slices = jax.tree.map(lambda x: x[None, None], update)

        def one(total: Tree, key: Array) -> tuple[Tree, None]:
            draw_key, key = jax.random.split(key)
            drawn = jax.random.bernoulli(draw_key, rate, (1, 1))
            _, private = gradient(jax.tree.map(jnp.zeros_like, update), PatientBatch(slices, drawn), key)
            return jax.tree.map(jnp.add, total, private), None

        start = jax.tree.map(jnp.zeros_like, update)
        return jax.lax.scan(one, start, jax.random.split(key, steps))[0]

    return release


def _inner_product(delta: Tree, one: Tree, key: Array) -> Array:
    """A loss whose gradient is the "image"."""
    del key
    return sum(jax.tree.leaves(jax.tree.map(lambda d, x: jnp.vdot(d, x), delta, one)))
