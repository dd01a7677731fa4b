"""Deltas on disk: safetensors with metadata that says which base weights they belong to.

A leaf of the delta {"lora": {"image_encoder/blocks_0/attn/qkv": {"a": x}}} is stored under the key
`lora:image_encoder/blocks_0/attn/qkv:a`: the names of the chain's parts, outermost first, module path, array.
A delta that is no chain has keys of two parts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import medvfm_jax
from medvfm_jax.types import Delta, MedvfmError, Params
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.torch_opcodes import BadCheckpoint
from medvfm_jax.weights.tree import collection, flatten

FORMAT = "medvfm-delta"
SEPARATOR = ":"


class WrongBaseWeights(MedvfmError):
    """A delta was made for other base weights than those it is applied to."""


class BadDelta(MedvfmError):
    """A delta file, or a delta to be written, is not well-formed."""


def save_delta(path: Path | str, delta: Delta, metadata: Mapping[str, Any]) -> None:
    """Write a delta with JSON-able metadata, whole or not at all; format and package version are added.

    `metadata` should hold "base" (model name), "fingerprint" (see `fingerprint`) and "adapter" (its
    configuration).  Raises BadDelta for something that is no nested dict of arrays, FetchError if the disk is
    full or not writable.
    """
    arrays = {}
    for parts, value in _leaves(delta):
        key = SEPARATOR.join(parts)
        if any(SEPARATOR in part for part in parts) or len(parts) < 2:
            raise BadDelta(f"A delta leaf needs a module path and a name without '{SEPARATOR}', not {parts}.")
        arrays[key] = np.asarray(value)
    text = json.dumps({"medvfm_jax": medvfm_jax.__version__, **metadata}, sort_keys=True)
    safetensors_files.write(path, arrays, {"format": FORMAT, "medvfm": text})


def load_delta(path: Path | str) -> tuple[Delta, dict[str, Any]]:
    """File -> (delta of numpy arrays, metadata).  Raises BadCheckpoint, BadDelta."""
    arrays, stored = safetensors_files.read(path)
    if stored.get("format") != FORMAT:
        raise BadDelta(f"{path} is a safetensors file but no delta: its metadata lack format={FORMAT}.")
    try:
        metadata = json.loads(stored["medvfm"])
    except (KeyError, ValueError) as error:
        raise BadCheckpoint(f"{path}: the metadata of the delta are damaged ({error}).") from error
    delta: Delta = {}
    for key in sorted(arrays):
        *groups, name = key.split(SEPARATOR)
        if not groups:
            raise BadDelta(f"{path}: key {key!r} is not <chain part>:<module path>:<array>.")
        node = delta
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = arrays[key]
    return delta, metadata


def fingerprint(params: Params) -> str:
    """sha256 over the sorted leaves: path, element type, shape and bytes of each."""
    digest = hashlib.sha256()
    for path, value in sorted(flatten(collection(params)).items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{path}|{array.dtype.name}|{array.shape}|".encode())
        digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.hexdigest()


def check_base(metadata: Mapping[str, Any], params: Params) -> None:
    """Raise WrongBaseWeights unless the delta with this metadata was made for these parameters."""
    recorded = metadata.get("fingerprint")
    if not recorded:
        raise WrongBaseWeights(
            "The delta does not say which base weights it was made for; refusing to guess."
        )
    actual = fingerprint(params)
    if actual != recorded:
        raise WrongBaseWeights(
            f"The delta was made for '{metadata.get('base', 'unknown')}' weights with fingerprint "
            f"{recorded[:12]}, but these have {actual[:12]}; load the weights it was trained on."
        )


def _leaves(tree: Mapping[str, Any], parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping):
        raise BadDelta(f"A delta is a nested dict of arrays; at {parts} there is a {type(tree).__name__}.")
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*parts, str(name)))
        else:
            yield (*parts, str(name)), value
