"""Shardings of everything a training step takes: weights, delta, optimiser state, batch; and the step under them.

The step itself is that of one device (``train.make_step``): ``shard_step`` says where its arguments and results live
and the compiler adds the collectives.  ``train.fit`` runs it unchanged.
"""

import math
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medvfm_jax.adapters import delta_leaves
from medvfm_jax.mesh_axes import BATCH
from medvfm_jax.parallel.errors import BadMesh
from medvfm_jax.parallel.rules import Rules, spec_of
from medvfm_jax.types import Delta, Params

if TYPE_CHECKING:
    from medvfm_jax.train.state import TrainState
    from medvfm_jax.train.step import Step

# Of libtpu: products that are summed over devices are summed in float32, also where they are bfloat16.
_SUM_IN_FLOAT32 = {"xla_tpu_spmd_f32_accum_for_bf16_ar": True}

Shardings = Any  # a tree like the arrays', with a NamedSharding per leaf


def images_over(mesh: Mesh) -> int:
    """Over how many devices the images of a batch are divided.

    Args:
        mesh: the mesh.

    Returns:
        The product of the sizes of "clients", "replica" and "data".
    """
    return math.prod(mesh.shape[axis] for axis in BATCH)


def param_shardings(rules: Rules, mesh: Mesh, params: Params) -> Shardings:
    """Where each parameter lives, by the rules.

    Args:
        rules: ordered (regex, placement) pairs, see ``spec_of``.
        mesh: the mesh.
        params: ``{"params": {...}}`` of arrays or ``jax.ShapeDtypeStruct``; only shapes are read.

    Returns:
        Tree like ``params`` with a NamedSharding per leaf.

    Raises:
        BadRules: see ``spec_of``; the message names the parameter's path.
    """

    def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = "/".join(str(key.key) for key in keys)
        return NamedSharding(mesh, spec_of(rules, mesh, path, leaf.shape))

    return {name: jax.tree.map_with_path(one, tree) for name, tree in params.items()}


def delta_shardings(rules: Rules, mesh: Mesh, delta: Delta) -> Shardings:
    """Where each array of a delta lives, by the rules.

    An increment of a parameter (``tune``) has the parameter's path and so its sharding; other arrays have a path of
    their own below the module they adapt.

    Args:
        rules: ordered (regex, placement) pairs, see ``spec_of``.
        mesh: the mesh.
        delta: arrays or ``jax.ShapeDtypeStruct``; only shapes are read.

    Returns:
        Tree like ``delta`` with a NamedSharding per leaf.

    Raises:
        BadRules: see ``spec_of``; the message names the array's path.
    """
    specs = [
        spec_of(rules, mesh, f"{leaf.path}/{leaf.name}", leaf.array.shape) for leaf in delta_leaves(delta)
    ]
    structure = jax.tree.structure(delta)  # sorted by key at every level, as delta_leaves is
    return jax.tree.unflatten(structure, [NamedSharding(mesh, spec) for spec in specs])


def state_shardings(
    rules: Rules, mesh: Mesh, state: "TrainState", optimizer: optax.GradientTransformation
) -> "TrainState":
    """Shardings of a TrainState: moments as the delta they belong to, counters and the random key replicated.

    Args:
        rules: ordered (regex, placement) pairs, see ``spec_of``.
        mesh: the mesh.
        state: arrays or ``jax.ShapeDtypeStruct``; only shapes are read.
        optimizer: the one that made ``state.opt_state``.

    Returns:
        A TrainState with a NamedSharding in place of each array.

    Raises:
        BadRules: see ``spec_of``.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    delta = delta_shardings(rules, mesh, state.delta)
    moments = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        delta,
        transform_non_params=lambda _: everywhere,
    )
    return state._replace(delta=delta, opt_state=moments, step=everywhere, key=everywhere)


def batch_shardings(mesh: Mesh, batch: Any) -> Shardings:
    """Sharding of a batch: the leading axis of every leaf over "clients", "replica" and "data".

    Args:
        mesh: the mesh.
        batch: leaves (B, ...), arrays or ``jax.ShapeDtypeStruct``.

    Returns:
        Tree like ``batch`` with the same NamedSharding for every leaf.

    Raises:
        BadMesh: B is no multiple of the devices of "clients", "replica" and "data" together.
    """
    parts = images_over(mesh)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))

    def one(leaf: Any) -> NamedSharding:
        if leaf.shape[0] % parts:
            raise BadMesh(
                f"A batch of {leaf.shape[0]} cannot be divided over {parts} devices (mesh axes "
                f"{', '.join(BATCH)}); choose a multiple of {parts}."
            )
        return sharding

    return jax.tree.map(one, batch)


def shard_step(
    step: "Step", params: Shardings, state: "TrainState", batch: Shardings, sums: str = "float32"
) -> "Step":
    """A training step compiled with these shardings; the state keeps its sharding and its buffers are donated.

    It is traced under the mesh, so that custom kernels, which the compiler cannot partition, partition themselves.

    Args:
        step: ``step(params, state, batch) -> (state, metrics)``, as ``train.make_step`` makes it.
        params: what ``param_shardings`` gives.
        state: what ``state_shardings`` gives.
        batch: what ``batch_shardings`` gives, or one sharding for all leaves.
        sums: "float32" or "bfloat16", number format in which TPUs sum what is computed in bfloat16 over devices. Other
            compilers choose themselves.

    Returns:
        The step under ``jax.jit``; metrics are replicated.
    """
    mesh = jax.tree.leaves(batch)[0].mesh
    metrics = NamedSharding(mesh, PartitionSpec())

    def on_mesh(params: Params, state: "TrainState", batch: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(params, state, batch)

    exact = sums == "float32" and mesh.devices.flat[0].platform == "tpu"
    return jax.jit(
        on_mesh,
        in_shardings=(params, state, batch),
        out_shardings=(state, metrics),
        donate_argnums=1,
        compiler_options=_SUM_IN_FLOAT32 if exact else None,
    )
