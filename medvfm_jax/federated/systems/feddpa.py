"""FedDPA: a global low-rank adapter that is averaged, a local one that stays, mixed for every instance.

Source: Yang et al. 2024, "Dual-Personalizing Adapter for Federated Foundation Models" (published on text models):
W x + (1 - w) global(x) + w local(x), w by the likeness of an instance to the client's training data.
As in its code (Lydia-yang/FedDPA): the local adapter trains under w = 1/2 with the global one as received, before the
global one trains alone (main.py, fed_utils/client.py); at inference w is half the mean cosine similarity to five
training instances, by the features of the local model (GlobalModel_generated.py).
Interpretation: local(x) = global(x) + own(x) with a second low-rank adapter "own", so that local training starts from
the global adapter and a site computes W x + global(x) + w own(x); the features of an image are the mean of its
embedding.  The delta is ``{"global_lora": ..., "local_lora":
..., further shared parts}`` with "own" under "local_lora"; unchanged, it is the local model.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Observed, Optimizer, Whole, local_steps, report
from medvfm_jax.federated.core.lora_aggregation import Factors, factors_of, replace_factors
from medvfm_jax.federated.core.personal_parts import join_personal, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Report, Server, Shard, Tree
from medvfm_jax.federated.core.tree_math import select, zeros_like
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.mesh_axes import vary_like
from medvfm_jax.systems import System
from medvfm_jax.systems.places import lora_on_qv
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec

GLOBAL, LOCAL = "global_lora", "local_lora"
OWN = rf"{LOCAL}/.*"
RANK = 8
HALF = 0.5  # w in training, and the largest w at inference
INSTANCES = 5  # training images of a client that an image is compared with


def feddpa_parts(spec: ModelSpec, rank: int = RANK) -> Parts:
    """Parts: two equal low-rank adapters on q and v of the image encoder."""
    return {GLOBAL: lora_on_qv(spec, rank), LOCAL: lora_on_qv(spec, rank)}


def feddpa_f(gradient: Gradient, optimizer: Optimizer, global_rounds: int = 10) -> Algorithm:
    """First ``global_rounds`` rounds of the global adapter (FedIT), then every client trains its local one.

    In the second phase uploads are zero: a real wire would send nothing, the counted bits stay.  Raises BadFederation.
    """
    if global_rounds < 1:
        raise BadFederation(f"feddpa_f: global_rounds must be at least 1, not {global_rounds}.")
    base = _federated(gradient, optimizer)

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        def train_global() -> tuple[Tree, Tree, Observed]:
            _, found = base.client_update(server, _nothing(own), shard, step_mask, key)
            return found.upload, own, Observed(found.loss, found.measured)

        def train_local() -> tuple[Tree, Tree, Observed]:
            nothing = vary_like(zeros_like(server.delta), step_mask)
            return nothing, *_local(gradient, optimizer, server.delta, own, shard, step_mask, key)

        # The round is the same for all clients, so this stays a branch under vmap and only one side is computed.
        early = server.round < global_rounds
        upload, own_now, seen = jax.lax.cond(early, train_global, train_local)
        return own_now, report(upload, seen, shard.samples)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        """In the second phase even noise or a codec's error must not move the global adapter."""
        return select(server.round < global_rounds, base.aggregate(server, mean, cohort), server)

    return base._replace(client_update=client_update, aggregate=aggregate)


def feddpa_t(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """In every round train the local adapter beside the global one as received, then the global one to be averaged.

    The first round has no local phase.  Both use all batches of the round: a local step costs two backward passes.
    """
    base = _federated(gradient, optimizer)

    def client_update(
        server: Server, own: Tree, shard: Shard, step_mask: Array, key: Array
    ) -> tuple[Tree, Report]:
        global_key, local_key = jax.random.split(key)
        _, sent = base.client_update(server, _nothing(own), shard, step_mask, global_key)
        later = step_mask & (server.round > 0)
        own, _ = _local(gradient, optimizer, server.delta, own, shard, later, local_key)
        return own, sent

    return base._replace(client_update=client_update)


def mix(delta: Tree, weight: Array | float) -> Tree:
    """Give the local model the weight w and the global one 1 - w, by scaling the local factors b.

    0 is the global model, 1 the local one.  Under ``jax.vmap`` over instances every instance has its own w.

    Args:
        delta: with the parts "global_lora" and "local_lora", as for ``feddpa_t``.
        weight: w, () in [0, 1].

    Returns:
        The delta of the mixture.

    Raises:
        BadFederation: no low-rank factors in "local_lora".

    References:
        https://arxiv.org/abs/2403.19211
    """
    pairs = {
        site: Factors(f.a, f.b * jnp.asarray(weight, f.b.dtype))
        for site, f in factors_of(delta[LOCAL]).items()
    }
    return {**delta, LOCAL: replace_factors(delta[LOCAL], pairs)}


def instance_weight(features: Array, local_features: Array, scale: float = HALF) -> Array:
    """Weight of the local model for one instance: ``scale`` times its mean cosine similarity to training images.

    It is cut off at 0 and 1 (the cut is an interpretation): an instance unlike the client's training data gets the
    global adapter.

    Args:
        features: (d,), of the instance.
        local_features: (S, d), of the client's training images.
        scale: largest weight, reached at cosine 1.

    Returns:
        w, () in [0, 1].

    References:
        https://arxiv.org/abs/2403.19211
    """
    unit, local_unit = (
        x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (features, local_features)
    )
    return jnp.clip(scale * (local_unit @ unit).mean(), 0, 1)


def _federated(gradient: Gradient, optimizer: Optimizer) -> Algorithm:
    """FedAvg of everything but the local adapter, which is silent."""

    def of_shared(trained: Tree, batch: Tree, key: Array, whole: Whole) -> tuple[Array | Observed, Tree]:
        return gradient(trained, batch, key, lambda part: _with_silent(whole(part)))

    base = fedavg(of_shared, optimizer)

    def init_server(delta: Tree) -> tuple[Tree, Tree]:
        missing = {GLOBAL, LOCAL} - set(delta)
        if missing:
            raise BadFederation(
                f"FedDPA needs a delta with the parts '{GLOBAL}' and '{LOCAL}', which {sorted(delta)} lacks: "
                "build it with feddpa_parts."
            )
        return base.init_server(split_personal(delta, OWN)[0])

    return base._replace(
        init_server=init_server,
        init_client=lambda delta, client_id: split_personal(delta, OWN)[1],
        reads="the features of training images, with which it mixes the two adapters",
    )


def _with_silent(shared: Tree) -> Tree:
    """The global model: a local adapter of zeros."""
    return {**shared, LOCAL: jax.tree.map(jnp.zeros_like, shared[GLOBAL])}


def _local(
    gradient: Gradient,
    optimizer: Optimizer,
    shared: Tree,
    own: Tree,
    shard: Shard,
    step_mask: Array,
    key: Array,
) -> tuple[Tree, Observed]:
    """Train what is own in the half-half mix, with everything shared frozen -> (own, what was observed)."""
    of_own = partial(gradient, whole=lambda own: mix(join_personal(shared, own), HALF))
    return local_steps(of_own, optimizer, own, shard, step_mask, key)[:2]


def _nothing(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: None, tree)


_SOURCE = "https://arxiv.org/abs/2403.19211"
_DIFFERENCES = (
    "Published on text models; the local adapter is the global one plus a second low-rank adapter; rank 8 on queries "
    "and values of the image encoder; an image is compared with five training images by the mean of its embedding, "
    "and cosine similarities are cut off at 0; rounds are validated under the half-half mix of training."
)
FEDDPA_F = FederatedSystem(
    System(
        description="a global LoRA, averaged for global_rounds rounds, then a local one per client, mixed for every "
        "instance (FedDPA-F, Yang et al. 2024)",
        source=_SOURCE,
        adapter=feddpa_parts,
        differences=_DIFFERENCES,
    ),
    feddpa_f,
    instance_mixing=True,
)
FEDDPA_T = FederatedSystem(
    System(
        description="a global LoRA, averaged, and a local one per client trained in every round, mixed for every "
        "instance (FedDPA-T, Yang et al. 2024)",
        source=_SOURCE,
        adapter=feddpa_parts,
        differences=_DIFFERENCES,
    ),
    feddpa_t,
    instance_mixing=True,
)
