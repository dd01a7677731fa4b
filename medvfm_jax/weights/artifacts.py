"""Deltas on disk: safetensors with metadata that says which base weights they belong to.

A leaf of the delta {"lora": {"image_encoder/blocks_0/attn/qkv": {"a": x}}} is stored under the key
`lora:image_encoder/blocks_0/attn/qkv:a`: the names of the chain's parts, outermost first, module path, array.
A delta that is no chain has keys of two parts.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import medvfm_jax
from medvfm_jax import json_text, local_paths
from medvfm_jax.printable import shortened
from medvfm_jax.types import Delta, MedvfmError, Params
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.soundness import unsound
from medvfm_jax.weights.torch_opcodes import BadCheckpoint
from medvfm_jax.weights.tree import collection, flatten

FORMAT = "medvfm-delta"
SEPARATOR = ":"
COMPRESSION = (
    "compression"  # in the metadata of a delta that holds its whole model: the method and its options
)
PROMPTS = ("box", "point", "mixed", "none")  # that a delta may have been trained for


class WrongBaseWeights(MedvfmError):
    """A delta was made for other base weights than those it is applied to."""


class BadDelta(MedvfmError):
    """A delta file, or a delta to be written, is not well-formed."""


def save_delta(path: Path | str, delta: Delta, metadata: Mapping[str, Any]) -> None:
    """Write a delta with metadata, whole or not at all; format and package version are added.

    Args:
        path: to write.
        delta: nested dict of finite floating-point arrays; of a compressed model also of integers.
        metadata: JSON-able; should hold "base" (model name), "fingerprint" (see `fingerprint`) and "adapter" (its
            configuration).

    Raises:
        BadDelta: something that is no such delta.
        FetchError: the disk is full or not writable.
    """
    local_paths.check(path, "The file to write")
    arrays = {}
    for parts, value in _leaves(delta):
        key = SEPARATOR.join(parts)
        if any(SEPARATOR in part for part in parts) or len(parts) < 2:
            raise BadDelta(f"A delta leaf needs a module path and a name without '{SEPARATOR}', not {parts}.")
        arrays[key] = np.asarray(value)
        if problem := _unsound(arrays[key], metadata):
            raise BadDelta(f"{path} was not written: {key} {problem}; the training went wrong before.")
    # In the order given: that of the parts of an adapter matters.
    text = json.dumps({"medvfm_jax": medvfm_jax.__version__, **metadata})
    safetensors_files.write(path, arrays, {"format": FORMAT, "medvfm": text})


def load_delta(path: Path | str) -> tuple[Delta, dict[str, Any]]:
    """Read a delta.

    Args:
        path: of the file.

    Returns:
        (delta of numpy arrays, all finite; metadata).

    Raises:
        BadCheckpoint: the file is damaged.
        BadDelta: it is no delta, or not well-formed.
    """
    arrays, stored = safetensors_files.read(path)
    metadata = _metadata(stored, path)
    delta: Delta = {}
    for key in sorted(arrays):
        *groups, name = key.split(SEPARATOR)
        if not groups:
            raise BadDelta(f"{path}: key {shortened(key)!r} is not <chain part>:<module path>:<array>.")
        if problem := _unsound(arrays[key], metadata):
            raise BadDelta(f"{path}: {shortened(key)} {problem}; no image can be segmented with it.")
        node = delta
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise BadDelta(f"{path}: {shortened(key)} lies within another array of the delta.")
        if name in node:
            raise BadDelta(f"{path}: {shortened(key)} is an array and a group of others.")
        node[name] = arrays[key]
    return delta, metadata


def _unsound(array: np.ndarray, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with an array of a delta, or None."""
    whole = COMPRESSION in metadata and array.dtype.kind in "iu" and array.dtype.itemsize == 1
    return None if whole else unsound(array)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """Only the metadata of a delta, without its arrays.  Raises BadCheckpoint, BadDelta."""
    return _metadata(safetensors_files.read_metadata(path), path)


def _metadata(stored: Mapping[str, str], path: Path | str) -> dict[str, Any]:
    if stored.get("format") != FORMAT:
        raise BadDelta(f"{path} is a safetensors file but no delta: its metadata lack format={FORMAT}.")
    return described(stored, path)


def described(stored: Mapping[str, str], path: Path | str) -> dict[str, Any]:
    """What a file of ours says of its adapter, from the metadata of the safetensors format.

    Raises BadCheckpoint for text that is no JSON, BadDelta for entries of another kind than expected.
    """
    try:
        metadata = json_text.parse_object(stored.get("medvfm", "null"))
    except json_text.BadJson as error:
        raise BadCheckpoint(f"{path}: the metadata of the delta are damaged ({error}).") from error
    for name, (holds, what) in _KINDS.items():
        if name in metadata and not holds(metadata[name]):
            raise BadDelta(
                f"{path}: '{name}' in the metadata of the delta is {metadata[name]!r:.80} where {what} was expected."
            )
    return metadata


def require(metadata: Mapping[str, Any], names: Iterable[str], path: Path | str) -> None:
    """Raise BadDelta unless the metadata of the delta say all of this."""
    if missing := [name for name in names if name not in metadata]:
        raise BadDelta(
            f"{path}: the metadata of the delta lack {', '.join(missing)}; was it written by adapt?"
        )


def check_arrays(delta: Delta, expected: Mapping[str, Any], path: Path | str) -> None:
    """Raise BadDelta unless the arrays are those of the adapter that the metadata describe.

    expected: nested dict of anything with a shape, what the adapter's ``init`` gives for the model.
    """
    found = {SEPARATOR.join(parts): value.shape for parts, value in _leaves(delta)}
    wanted = {SEPARATOR.join(parts): tuple(value.shape) for parts, value in _leaves(expected)}
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            is_ = f"has shape {found[key]}" if key in found else "is missing"
            should = f"it has shape {wanted[key]}" if key in wanted else "there is none"
            raise BadDelta(
                f"{path}: {shortened(key)} {is_}; for the adapter that its metadata describe {should}. The file "
                "is damaged, or was put together from two deltas."
            )


def _integer(low: int, above: int = 2**31) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value < above


def _label_table(value: Any) -> bool:
    return isinstance(value, dict) and all(_integer(0)(index) for index in value.values())


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "base": (lambda value: isinstance(value, str), "the name of a model"),
    "fingerprint": (lambda value: isinstance(value, str), "a digest"),
    "adapter": (lambda value: isinstance(value, dict | None), "the configuration of an adapter"),
    "prompt": (lambda value: value in PROMPTS, f"one of {', '.join(PROMPTS)}"),
    "classes": (_integer(1, 2**16 + 1), "a number of classes"),
    "seed": (lambda value: type(value) is int and -(2**63) <= value < 2**63, "a whole number"),
    "labels": (_label_table, "a table of labels"),
    "channel_names": (_words, "a list of names"),
    "settings_sha256": (lambda value: isinstance(value, str), "a digest"),
    COMPRESSION: (lambda value: isinstance(value, dict), "the settings of a compression"),
    "preset": (lambda value: isinstance(value, str | None), "the name of a preset"),
}


def fingerprint(params: Params) -> str:
    """Digest of parameters.

    Args:
        params: arrays.

    Returns:
        sha256 over the sorted leaves: path, element type, shape and bytes of each.
    """
    digest = hashlib.sha256()
    for path, value in sorted(flatten(collection(params)).items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{path}|{array.dtype.name}|{array.shape}|".encode())
        digest.update(array.view(np.uint8).reshape(-1).data if array.size else b"")
    return digest.hexdigest()


def check_base(metadata: Mapping[str, Any], params: Params) -> None:
    """Check that a delta was made for these parameters.

    Args:
        metadata: of the delta.
        params: of the unadapted model.

    Raises:
        WrongBaseWeights: it was made for others.
    """
    check_fingerprint(metadata, fingerprint(params))


def check_fingerprint(metadata: Mapping[str, Any], actual: str) -> None:
    """Check that a delta was made for the parameters of this fingerprint.

    Args:
        metadata: of the delta.
        actual: of the unadapted model, taken before a system transformed its parameters.

    Raises:
        WrongBaseWeights: it was made for others.
    """
    recorded = metadata.get("fingerprint")
    if not recorded:
        raise WrongBaseWeights(
            "The delta does not say which base weights it was made for; refusing to guess."
        )
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
