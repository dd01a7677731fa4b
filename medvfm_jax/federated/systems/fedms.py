"""FedMS (FedFMSL): a global expert first, then a local one and a gate between them; layers wake up one by one.

Source: Wu et al. 2023, "FedMS: Federated Learning with Mixture of Sparsely Activated Foundation Models" (abstract).
Interpretation: experts are low-rank updates of one backbone, mixed at every site and token by a linear gate
(``adapters.lora_experts``), where the paper gates between two whole models; layers are activated from the last to the
first, evenly over ``ramp`` rounds of either stage.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.federated.algorithms.averaging import averaging
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Optimizer
from medvfm_jax.federated.core.personal_parts import join_personal, split_personal
from medvfm_jax.federated.core.records import Algorithm, Cohort, Server, Tree
from medvfm_jax.federated.core.tree_math import select, zeros_like
from medvfm_jax.federated.systems.layers import layers_of, scale_layers
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import System
from medvfm_jax.systems.places import QKV
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec

LOCAL = r"(.*/)?[ab]_local"
GATE = r"(.*/)?gate(_bias)?"
RANK = 4


def fedms_parts(spec: ModelSpec, rank: int = RANK) -> Parts:
    """Parts: two experts and a gate at every qkv of the image encoder."""
    del spec
    return {"experts": {"kind": "lora_experts", "rank": rank, "alpha": None, "at": QKV}}


def fedms(gradient: Gradient, optimizer: Optimizer, global_rounds: int = 10, ramp: int = 5) -> Algorithm:
    """Stage 1, ``global_rounds`` rounds: average the global expert.  Stage 2: local expert and gate, gate averaged.

    The local expert starts as the global one, so that in stage 1 the gate does not matter and the model is one LoRA;
    in stage 2 the global expert is frozen.  Round r of a stage trains the last ceil(L (r + 1) / ramp) of the L layers
    (sparsely activated LoRA); the gate is always active.  Messages are static: what a stage does not train is sent as
    zeros and counted.  Raises BadFederation.
    """
    if min(global_rounds, ramp) < 1:
        raise BadFederation(f"fedms: global_rounds and ramp must be at least 1, not {global_rounds}, {ramp}.")

    def active(server: Server, updates: Tree) -> Tree:
        return keep_active(updates, server.round, global_rounds, ramp)

    base = averaging(gradient, optimizer, optax.sgd(1.0), personal=LOCAL, update_mask=active)

    def init_server(delta: Tree) -> tuple[Tree, Tree]:
        if not jax.tree.leaves(split_personal(delta, LOCAL)[1]):
            raise BadFederation("fedms needs experts: build the delta with the adapter lora_experts.")
        return base.init_server(delta)

    def aggregate(server: Server, mean: Tree, cohort: Cohort) -> Server:
        """What is frozen or asleep must not be moved by noise or a codec's error either."""
        return base.aggregate(server, active(server, mean), cohort)

    return base._replace(init_server=init_server, aggregate=aggregate)


def keep_active(updates: Tree, round_: Array, global_rounds: int, ramp: int) -> Tree:
    """Zero the updates of what round () does not train: the other stage's part, and layers that sleep."""
    first = round_ < global_rounds
    rest, of_second = split_personal(updates, f"{LOCAL}|{GATE}")
    rest = select(first, rest, zeros_like(rest))
    of_second = select(first, zeros_like(of_second), of_second)
    stage_round = jnp.where(first, round_, round_ - global_rounds)
    return activate(join_personal(rest, of_second), stage_round, ramp)


def activate(updates: Tree, stage_round: Array, ramp: int) -> Tree:
    """Zero the updates of layers that sleep; () round of the stage."""
    experts, gates = split_personal(updates, GATE)
    layers = layers_of(experts)
    count = len(layers)
    awake = jnp.clip(-(-count * (stage_round + 1) // ramp), 1, count)
    factors = (jnp.arange(count) >= count - awake).astype(jnp.float32)
    return join_personal(scale_layers(experts, layers, factors), gates)


SYSTEM = FederatedSystem(
    System(
        description="a global low-rank expert first, then a local one and an averaged gate, layers activated one by "
        "one (FedMS, Wu et al. 2023)",
        source="https://arxiv.org/abs/2312.15926",
        adapter=fedms_parts,
        differences="Experts are mixed at every site and token instead of whole models; layers wake from the last to "
        "the first over a fixed number of rounds.",
    ),
    fedms,
)
