"""Key/shape dumps of reference checkpoints as state dicts of zero-memory arrays, and made-up targets."""

import ast
from pathlib import Path

import numpy as np

from medvfm_jax.port_tables.layouts import LAYOUTS
from medvfm_jax.weights.tree import unflatten


def read_dump(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Lines `key<TAB>shape<TAB>dtype<TAB>kind` -> {key: array of that shape and dtype, without memory}."""
    state = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            key, shape, dtype, _ = line.split("\t")
            state[prefix + key] = np.broadcast_to(np.zeros((), dtype), ast.literal_eval(shape))
    return state


def targets_of(table, state) -> dict:
    """The parameter tree a table would make of a state dict, rows without joins only."""
    flat = {}
    for key, value in state.items():
        for row in table.rows:
            if (path := row.match_source(key)) is not None:
                flat[path] = LAYOUTS[row.layout].to_jax(value)
    return {"params": unflatten(flat)}
