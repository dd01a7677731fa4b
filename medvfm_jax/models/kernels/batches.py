"""Kernels in a batch and on a mesh: what vmap and the compiler cannot do with a ``pallas_call`` by themselves."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from medvfm_jax.mesh_axes import automatic_axes, vary_like


def over_batches(launch: Callable[..., Any]) -> Callable[..., Any]:
    """launch(kernel, shared, *arrays (batch, ...)) under vmap: a mapped axis becomes a part of the batch.

    shared: a tree of arrays that all of the batch has in common.  Only where it is mapped too, as for clients that
    train it, calls follow one another.
    """

    def call(kernel: Any, shared: Any, *arrays: Array) -> Any:
        @custom_vmap
        def batched(shared: Any, *arrays: Array) -> Any:
            return _divided(functools.partial(launch, kernel), shared, *arrays)

        @batched.def_vmap
        def _(size: int, mapped: Any, shared: Any, *arrays: Array) -> Any:
            arrays = [
                x if m else jnp.broadcast_to(x, (size, *x.shape))
                for m, x in zip(mapped[1:], arrays, strict=True)
            ]
            if any(jax.tree.leaves(mapped[0])):
                shared = jax.tree.map(
                    lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), shared, mapped[0]
                )
                out = jax.lax.map(lambda one: batched(*one), (shared, *arrays))
            else:
                out = batched(shared, *(x.reshape(-1, *x.shape[2:]) for x in arrays))
                out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
            return out, jax.tree.map(lambda _: True, out)

        return batched(shared, *arrays)

    return call


def _divided(call: Callable[..., Any], shared: Any, *arrays: Array) -> Any:
    """Divide the batch over the devices of the current mesh: XLA cannot divide a kernel by itself.

    Axes that cannot divide it, "model" for example if the batch is small, repeat the work.
    """
    mesh, free = jax.sharding.get_abstract_mesh(), automatic_axes()
    if not free:
        return call(shared, *arrays)
    over: list[str] = []
    for name in free:
        if arrays[0].shape[0] % math.prod(mesh.shape[other] for other in (*over, name)) == 0:
            over.append(name)
    batch = jax.P(tuple(over))
    specs = {"in_specs": (jax.P(), *[batch] * len(arrays)), "out_specs": batch}
    divided = jax.shard_map(call, mesh=mesh, axis_names=set(free), check_vma=False, **specs)
    # Unchecked, it also forgets the axes of an enclosing shard_map, over clients for example.
    return vary_like(divided(shared, *arrays), arrays[0])
