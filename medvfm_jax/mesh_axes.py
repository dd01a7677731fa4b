"""Axes of a mesh as a program sees them while it is traced: which ones are known, over which a value differs."""

from typing import TypeVar

import jax
from jax import Array
from jax.sharding import AxisType

CLIENTS, REPLICA, DATA, MODEL = "clients", "replica", "data", "model"
BATCH = (CLIENTS, REPLICA, DATA)  # the axes over which images are divided
SLICES = "slices"  # of a slab: a vmapped axis, see models.slab

Tree = TypeVar("Tree")


def automatic_axes() -> tuple[str, ...]:
    """Names of the axes of the current mesh over which the compiler divides; none outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto)


def fully_automatic() -> bool:
    """Whether there is a current mesh and no ``shard_map`` has taken one of its axes."""
    return 0 < len(automatic_axes()) == len(jax.sharding.get_abstract_mesh().axis_names)


def varies(x: Array) -> bool:
    """Whether a value differs over an axis that an enclosing ``shard_map`` has taken."""
    return bool(jax.typeof(x).manual_axis_type.varying)


def vary_like(tree: Tree, like: Array) -> Tree:
    """Let every leaf differ over the manual mesh axes over which ``like`` differs; outside shard_map nothing changes.

    The carry of a scan must keep its type, and a hand-written gradient has the type of what it is the gradient of.
    """
    axes = jax.typeof(like).manual_axis_type.varying

    def vary(x: Array) -> Array:
        missing = axes - jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)
