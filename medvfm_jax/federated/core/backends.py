"""Map a function over clients in three ways, and sum on the way so that not every client's upload is stored.

The mapped function returns (summed, each): ``summed`` leaves the backend added over clients, ``each`` stacked.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Backend, Tree
from medvfm_jax.mesh_axes import vary_like

AXIS = "clients"

MapClients = Callable[[Callable[..., tuple], tuple, Tree], tuple[Tree, Tree]]


def client_map(backend: Backend, mesh: Mesh | None = None, chunk: int | None = None) -> MapClients:
    """Return ``map(run, shared, stacked) -> (sum over n, stacked n)`` of ``run(shared, one) -> (summed, each)``.

    "loop": one client after the other.  "vmap": all at once, or ``chunk`` at a time with the sum carried along, so
    that memory holds ``chunk`` uploads.  "shard_map": clients over the mesh axis "clients", then as "vmap" on each
    device; other mesh axes stay automatic, so what ``run`` closes over may be sharded over them.

    Raises BadFederation.
    """
    if chunk is not None and chunk < 1:
        raise BadFederation(f"chunk must be at least 1 client, not {chunk}.")
    if backend == "loop":
        return lambda run, shared, stacked: _accumulate(partial(run, shared), stacked)
    if backend == "vmap":
        return lambda run, shared, stacked: _chunked(partial(run, shared), stacked, chunk)
    if backend != "shard_map":
        raise BadFederation(f"There is no backend '{backend}'; choose loop, vmap or shard_map.")
    if mesh is None or AXIS not in mesh.axis_names:
        raise BadFederation(f"The backend shard_map needs a mesh with an axis '{AXIS}'.")
    return partial(_sharded, mesh, chunk)


def place(tree: Tree, mesh: Mesh | None, axis: str | None = None) -> Tree:
    """Put a tree where the round leaves it, so that the second round neither retraces nor moves it."""
    if mesh is None:
        return tree
    spec = PartitionSpec() if axis is None else PartitionSpec(axis)
    return jax.device_put(tree, NamedSharding(mesh, spec))


def _sharded(mesh: Mesh, chunk: int | None, run: Callable, shared: tuple, stacked: Tree) -> tuple[Tree, Tree]:
    clients, devices = _length(stacked), mesh.shape[AXIS]
    if clients % devices:
        raise BadFederation(
            f"{clients} clients cannot be divided over {devices} devices: add absent clients up to a multiple."
        )

    def local(shared: tuple, stacked: Tree) -> tuple[Tree, Tree]:
        # Without this cast, gradients with respect to the replicated delta are summed over clients, silently.
        shared = jax.lax.pcast(shared, AXIS, to="varying")
        summed, each = _chunked(partial(run, shared), stacked, chunk)
        return jax.lax.psum(summed, AXIS), each

    over_clients, everywhere = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, over_clients),
        out_specs=(everywhere, over_clients),
        axis_names={AXIS},
    )(shared, stacked)


def _chunked(run: Callable, stacked: Tree, chunk: int | None) -> tuple[Tree, Tree]:
    clients = _length(stacked)
    if chunk is None or chunk >= clients:
        return _batch(run, stacked)
    whole = clients // chunk
    folded = jax.tree.map(lambda x: x[: whole * chunk].reshape(whole, chunk, *x.shape[1:]), stacked)
    summed, each = _accumulate(partial(_batch, run), folded)
    each = jax.tree.map(lambda x: x.reshape(whole * chunk, *x.shape[2:]), each)
    if whole * chunk == clients:
        return summed, each
    last_sum, last = _batch(run, jax.tree.map(lambda x: x[whole * chunk :], stacked))
    summed = jax.tree.map(jnp.add, summed, last_sum)
    return summed, jax.tree.map(lambda x, y: jnp.concatenate([x, y]), each, last)


def _batch(run: Callable, stacked: Tree) -> tuple[Tree, Tree]:
    summed, each = jax.vmap(run)(stacked)
    return jax.tree.map(lambda x: x.sum(axis=0), summed), each


def _accumulate(run: Callable, stacked: Tree) -> tuple[Tree, Tree]:
    def step(total: Tree, one: Any) -> tuple[Tree, Tree]:
        summed, each = run(one)
        return jax.tree.map(jnp.add, total, summed), each

    first = jax.tree.map(lambda x: x[0], stacked)
    shapes, _ = jax.eval_shape(run, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(step, vary_like(zeros, jax.tree.leaves(stacked)[0]), stacked)


def _length(stacked: Tree) -> int:
    return jax.tree.leaves(stacked)[0].shape[0]
