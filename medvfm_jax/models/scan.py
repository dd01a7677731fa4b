"""Stacked encoder blocks and plain ones: the same parameters, ``blocks_0 ... blocks_n`` <-> ``blocks/block_j``.

Blocks come in groups of equal shape (window, window, global in SAM ViT-B; single blocks in a plain ViT).  Stacked,
``blocks/block_j/...`` holds block j of every group on a leading axis, so that one group is compiled once and scanned.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.types import Delta, Params

_BLOCK = re.compile(r"blocks_(\d+)")
_STACKED = re.compile(r"((?:.*/)?image_encoder/)blocks/block_(\d+)(.*)")  # in a delta


def stack(params: Params, group: int) -> Params:
    """``image_encoder/blocks_i`` -> ``image_encoder/blocks/block_j`` with a leading axis of depth / group."""
    encoder = params["params"]["image_encoder"]
    blocks = {int(m[1]): encoder[m[0]] for m in map(_BLOCK.fullmatch, encoder) if m}
    if not blocks or len(blocks) % group:
        raise ValueError(f"{len(blocks)} blocks do not form groups of {group}")
    stacked = {
        f"block_{j}": jax.tree.map(_stack, *(blocks[i] for i in range(j, len(blocks), group)))
        for j in range(group)
    }
    kept = {name: value for name, value in encoder.items() if not _BLOCK.fullmatch(name)}
    return _with_encoder(params, {**kept, "blocks": stacked})


def unstack(params: Params) -> Params:
    """Inverse of ``stack``."""
    encoder = dict(params["params"]["image_encoder"])
    stacked = encoder.pop("blocks")
    group = len(stacked)
    for j in range(group):
        block = stacked[f"block_{j}"]
        for g in range(jax.tree.leaves(block)[0].shape[0]):
            encoder[f"blocks_{g * group + j}"] = jax.tree.map(lambda leaf, g=g: leaf[g], block)
    return _with_encoder(params, encoder)


def unstack_delta(delta: Delta, group: int) -> Delta:
    """A delta trained on stacked blocks -> that of plain ones; ``group``: blocks of a group."""

    def nested(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        found: dict[str, Any] = {}
        for name, value in tree.items():
            if (at := _STACKED.fullmatch(name)) is None:
                found[name] = nested(value)
                continue
            for g in range(jax.tree.leaves(value)[0].shape[0]):
                plain = f"{at[1]}blocks_{g * group + int(at[2])}{at[3]}"
                found[plain] = jax.tree.map(lambda leaf, g=g: leaf[g], value)
        return found

    return nested(delta)


def _stack(*leaves: Any) -> Any:
    host = all(
        isinstance(leaf, np.ndarray) for leaf in leaves
    )  # do not copy to a device what is not there yet
    return np.stack(leaves) if host else jnp.stack(leaves)


def _with_encoder(params: Params, encoder: Mapping[str, Any]) -> Params:
    return {**params, "params": {**params["params"], "image_encoder": encoder}}
