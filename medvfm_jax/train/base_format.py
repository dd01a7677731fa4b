"""Frozen base weights in bfloat16: half the memory on a device; what trains stays float32."""

from typing import Any

import jax
import jax.numpy as jnp

from medvfm_jax.adapters.tune import statistics
from medvfm_jax.types import Params


def in_format(params: Params, dtype: str) -> Params:
    """Matrices and larger arrays of the frozen weights in another number format.

    Vectors (biases, scales of norms), statistics of batch norms and SAM's random frequencies stay as they are: they
    take little memory, and the sine of a rounded frequency is another number.

    Args:
        params: ``{"params": {...}}`` of arrays or ``jax.ShapeDtypeStruct``.
        dtype: "float32" leaves everything as it is; or "bfloat16".

    Returns:
        The same tree.
    """
    if dtype == "float32":
        return params
    kept = statistics(params)

    def one(keys: tuple[Any, ...], leaf: Any) -> Any:
        path = "/".join(str(key.key) for key in keys)
        if leaf.ndim < 2 or path in kept or leaf.dtype != jnp.float32:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype))
        return leaf.astype(jnp.dtype(dtype))

    return {**params, "params": jax.tree.map_with_path(one, params["params"])}
