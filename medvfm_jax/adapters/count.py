"""Count what trains."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from medvfm_jax.adapters.delta_paths import delta_leaves, is_fixed
from medvfm_jax.adapters.parameter_paths import leaves_by_path
from medvfm_jax.adapters.tune import statistics
from medvfm_jax.types import Delta, Params


class Count(NamedTuple):
    """How much trains.

    Attributes:
        trained: numbers in the delta, without constants stored with it (``delta_paths.is_fixed``) and buffers.
        total: parameters of the frozen model.
        bytes: of the delta, constants included.
    """

    trained: int
    total: int  # of the frozen model; the arrays that an adapter adds are not in it
    bytes: int

    @property
    def fraction(self) -> float:
        """trained / total; above 1 for adapters that are larger than the model."""
        return self.trained / self.total

    def __str__(self) -> str:
        return (
            f"{self.trained:,} parameters train, {100 * self.fraction:.2f} % of the model's {self.total:,}; "
            f"the delta is {_readable(self.bytes)}"
        )


def count(delta: Delta, params: Params) -> Count:
    """Count a delta against the frozen parameters.

    Buffers (batch-norm statistics, SAM's random frequencies) are no parameters and are left out of the total.

    Args:
        delta: arrays or their shapes.
        params: arrays or their shapes.

    Returns:
        What trains, out of how many, and its bytes.
    """
    buffers = statistics(params)
    leaves = leaves_by_path(params["params"])
    total = sum(math.prod(p.shape) for m, n, p in leaves if f"{m}/{n}".lstrip("/") not in buffers)
    arrays = jax.tree.leaves(delta)
    size = sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)
    trained = sum(
        math.prod(leaf.array.shape)
        for leaf in delta_leaves(delta)
        if leaf.array is not None  # None: a part that is not of this delta
        and not is_fixed(leaf.name)
        and f"{leaf.path}/{leaf.name}".lstrip("/") not in buffers
    )
    return Count(trained, total, size)


def _readable(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size = size / 1024
    return f"{size:.1f} GiB"
