"""Read and write safetensors files with string metadata; written whole or not at all.

    length of header (8, little-endian) | header: JSON {name: {"dtype", "shape", "data_offsets"}} | the tensors

The reader is our own, because it must be safe for files from untrusted sources: what the header says is checked
against the size of the file before anything is allocated.
Source: the format's description in the README of huggingface/safetensors.
"""

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from medvfm_jax.fetch.cache import publish, temporary
from medvfm_jax.json_text import once
from medvfm_jax.printable import shortened
from medvfm_jax.weights.byte_budget import ByteBudget
from medvfm_jax.weights.torch_opcodes import BadCheckpoint

MAX_HEADER_BYTES = 16 << 20  # ten thousand tensors take about one
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
ENTRY = {"dtype", "shape", "data_offsets"}


class Header(NamedTuple):
    """entries: {name: what the file says about the tensor}; start: where in the file the tensors begin."""

    entries: dict[str, Any]
    metadata: dict[str, str]
    start: int


def read(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """File -> ({key: array}, metadata).

    Raises BadCheckpoint if missing, truncated or damaged, or with elements of a type that no model here uses.
    """
    try:
        with open(path, "rb") as file:
            header = _header(file, path)
            return _arrays(file, header, path), header.metadata
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """Only the metadata, without the tensors.  Raises BadCheckpoint."""
    try:
        with open(path, "rb") as file:
            return _header(file, path).metadata
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: Exception) -> BadCheckpoint:
    reason = error
    if isinstance(error, RecursionError):
        reason = "the header is nested too deep"
    elif isinstance(error, OSError):
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else error.strerror or error
    return BadCheckpoint(f"{path}: cannot be read as safetensors ({reason}).")


def _header(file: BinaryIO, path: Path | str) -> Header:
    start = file.read(8)
    if len(start) != 8:
        raise ValueError("the file is shorter than its header")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    text = file.read(length)
    if len(text) != length:
        raise ValueError("the file ends within its header")
    entries = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    if not isinstance(entries, dict):
        raise ValueError("the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not words")
    return Header(entries, metadata, 8 + length)


def _arrays(file: BinaryIO, header: Header, path: Path | str) -> dict[str, np.ndarray]:
    """Every tensor, in the order of their names."""
    size = os.fstat(file.fileno()).st_size
    budget, at = ByteBudget(path, size), 0
    places: list[tuple[str, np.dtype, list[int], int]] = []
    for key, entry in sorted(header.entries.items(), key=lambda item: _offsets(*item)):
        begin, end = entry["data_offsets"]
        dtype = _dtype(key, entry["dtype"], path)
        if not isinstance(entry["shape"], list):
            raise ValueError(f"the shape of '{shortened(key)}' is no list")
        count = budget.elements(key, entry["shape"], dtype.itemsize)
        if begin != at or end != at + count * dtype.itemsize:
            raise ValueError(f"'{shortened(key)}' does not lie where its shape and the others say")
        places.append((key, dtype, entry["shape"], begin))
        at = end
    if header.start + at != size:
        raise ValueError(f"the tensors take {at} bytes and the file has {size - header.start} for them")
    arrays = {}
    for key, dtype, shape, begin in places:
        arrays[key] = np.empty(shape, dtype)
        file.seek(header.start + begin)
        if file.readinto(arrays[key].reshape(-1).view(np.uint8).data) != arrays[key].nbytes:
            raise ValueError("the file became shorter while it was read")
    return {key: arrays[key] for key in sorted(arrays)}


def _offsets(key: str, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != ENTRY:
        raise ValueError(f"'{shortened(key)}' is not described by {', '.join(sorted(ENTRY))}")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or [type(n) for n in offsets] != [int, int]:
        raise ValueError(f"the offsets of '{shortened(key)}' are not two numbers")
    return offsets[0], offsets[1]


def _dtype(key: str, name: Any, path: Path | str) -> np.dtype:
    if not isinstance(name, str) or name not in DTYPES:
        raise BadCheckpoint(
            f"{path}: {shortened(key)} has element type {name!r:.80}, which no model here uses; save it as F32, "
            "F16 or BF16."
        )
    return np.dtype(DTYPES[name])


def write(path: Path | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write to a temporary name beside `path`, then rename.  Raises FetchError (disk full, no permission).

    The same arrays and metadata give the same bytes.
    """
    path = Path(path)
    tensors = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    with temporary(path) as part:
        try:
            save_file(tensors, part, metadata=dict(metadata))
        except SafetensorError as error:
            raise _from_the_system(error) from error
        _sort_metadata(part)
        publish(part, path)


def _from_the_system(error: SafetensorError) -> Exception:
    """What the system said (a full disk), which safetensors wraps into an error of its own."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else error


def _sort_metadata(path: Path) -> None:
    """Put the metadata of the header in order, in place: `save_file` writes them in a random one."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # what follows must stay where it is
            file.seek(8)
            file.write(text.ljust(length))
