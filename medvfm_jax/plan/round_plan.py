"""A federated round over the devices of a mesh, compiled ahead of time: does the cohort fit, and how long is a round.

The round is that of ``make_round`` with FedAvg and AdamW, clients sharded over the mesh axis "clients" by shard_map.
Base weights are one argument of the program, replicated or sharded over "data": there is one copy for all clients.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medvfm_jax.adapters import Count
from medvfm_jax.federated import algorithms
from medvfm_jax.federated.core.fixed_arrays import with_fixed
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Federation, Shard
from medvfm_jax.federated.rounds.federation import make_round
from medvfm_jax.mesh_axes import CLIENTS, DATA, REPLICA
from medvfm_jax.parallel.rules import RULES
from medvfm_jax.parallel.shardings import param_shardings
from medvfm_jax.plan.abstract_training import Abstract, abstract_training
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.flops import Flops
from medvfm_jax.plan.step_plan import Plan, Work, compile_for, count_flops
from medvfm_jax.settings.plan import CohortPlanConfig
from medvfm_jax.train.optimizer import make_optimizer
from medvfm_jax.types import Params

_RATE = 1e-4


def plan_cohort(config: CohortPlanConfig) -> Plan:
    """Compile one round; FLOPs and seconds are those of the round.

    Raises BadPlan, BadMesh, BadRules, and what the catalogue and the adapters raise.
    """
    _check(config)
    return compile_for(config, _round, _advise)


def _check(config: CohortPlanConfig) -> None:
    for name in ("clients", "local_steps", "at_once"):
        if getattr(config, name) < 1:
            raise BadPlan(f"{name} is {getattr(config, name)}; expected at least 1.")
    if config.global_batch % config.clients:
        raise BadPlan(
            f"A batch of {config.global_batch} cannot be divided over {config.clients} clients; it counts the images "
            "of one local step of all of them."
        )
    if config.accumulate not in (None, 1):
        raise BadPlan("A client's batch is not cut into parts; leave accumulate out or take a smaller batch.")


def _round(config: CohortPlanConfig, mesh: Mesh) -> Work:
    clients, steps, each = config.clients, config.local_steps, config.global_batch // config.clients
    for what, number, axis in (
        (f"{clients} clients", clients, CLIENTS),
        (f"A client's {each} images", each, DATA),
    ):
        if number % mesh.shape[axis]:
            raise BadPlan(
                f"{what} cannot be divided over {mesh.shape[axis]} devices (mesh axis {axis}); choose a multiple."
            )
    if mesh.shape[REPLICA] > 1:
        raise BadPlan(f"A round divides nothing over the mesh axis {REPLICA}; use {CLIENTS} and {DATA}.")
    training = abstract_training(config)
    flops = count_flops(training)
    work = Flops(steps * flops.model, steps * flops.executed, steps * flops.kernels)
    return Work(_lower(config, training, mesh), training.size, work)


def _lower(config: CohortPlanConfig, training: Abstract, mesh: Mesh) -> jax.stages.Lowered:
    data = _shapes(training, config.clients, config.local_steps)

    def first(params: Params, delta: Any, data: Shard) -> Any:
        return _federation(training, params).init(delta, data)

    server, clients = jax.eval_shape(first, training.params, training.state.delta, data)
    everywhere, over_clients = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(CLIENTS))
    )
    batches = NamedSharding(mesh, PartitionSpec(CLIENTS, None, DATA))

    def one_round(params: Params, server: Any, clients: Any, data: Shard, chosen: Any, key: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            federation = _federation(training, params, backend="shard_map", mesh=mesh, chunk=config.at_once)
            steps = jnp.full(chosen.shape, config.local_steps)
            return federation.round(server, clients, data, chosen, steps, key)

    weights = param_shardings(RULES[config.rules](), mesh, training.params)
    stays = (everywhere, over_clients)
    where = (*stays, Shard(batches, over_clients), over_clients, everywhere)
    compiled = jax.jit(
        one_round, in_shardings=(weights, *where), out_shardings=(*stays, None), donate_argnums=(1, 2)
    )
    chosen = jax.ShapeDtypeStruct((config.clients,), bool)
    return compiled.trace(training.params, server, clients, data, chosen, training.state.key).lower()


def _federation(training: Abstract, params: Params, **backend: Any) -> Federation:
    def algorithm(params: Params) -> Algorithm:
        def loss(delta: Any, batch: Any, key: Any) -> Any:
            return training.loss(params, delta, batch, key)[0]

        return algorithms.fedavg(gradient_of(loss), make_optimizer(_RATE))

    return make_round(with_fixed(algorithm, params), **backend)


def _shapes(training: Abstract, clients: int, steps: int) -> Shard:
    """The batch of one step of all clients -> one client after the other, every step."""

    def one(leaf: Any) -> Any:
        shape = (clients, steps, leaf.shape[0] // clients, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return Shard(jax.tree.map(one, training.batch), jax.ShapeDtypeStruct((clients,), jnp.float32))


def _advise(config: CohortPlanConfig, mesh: Mesh, size: Count) -> str:
    """What to change first where a round does not fit."""
    each = config.global_batch // config.clients
    if config.at_once > 1:
        return f"--at-once {config.at_once // 2}: every device computes {config.at_once} clients at the same time"
    if config.keep == "everything":
        return "--keep products: everything is kept for the whole backward pass"
    if config.keep == "products":
        return "--keep nothing: results of products are kept for the whole backward pass"
    if each > mesh.shape[DATA]:
        return f"--global-batch {config.global_batch // 2}: a client works on {each} images at once"
    if config.rules == "replicated" and 4 * size.total > 2**30:
        return "--rules fsdp and a data axis: the weights are whole on every device"
    return "a smaller --image-size, --dtype bfloat16, or chips with more memory"
