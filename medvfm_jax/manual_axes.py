"""Types of values inside ``shard_map``: over which mesh axes they differ."""

from typing import TypeVar

import jax
from jax import Array

Tree = TypeVar("Tree")


def vary_like(tree: Tree, like: Array) -> Tree:
    """Let every leaf differ over the manual mesh axes over which ``like`` differs; outside shard_map nothing changes.

    The carry of a scan must keep its type, and a hand-written gradient has the type of what it is the gradient of.
    """
    axes = jax.typeof(like).manual_axis_type.varying

    def vary(x: Array) -> Array:
        missing = axes - jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(vary, tree)
