"""Read and write safetensors files with string metadata; written whole or not at all."""

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from medvfm_jax.fetch.cache import publish, temporary
from medvfm_jax.weights.torch_opcodes import BadCheckpoint

MAX_HEADER_BYTES = 100 << 20


def read(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """File -> ({key: array}, metadata).  Raises BadCheckpoint if missing, truncated or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error  # theirs repeats the path
        raise BadCheckpoint(f"{path}: cannot be read as safetensors ({reason}).") from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """Only the metadata, without the tensors.  Raises BadCheckpoint."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("absurd header length")
            return dict(json.loads(file.read(length)).get("__metadata__", {}))
    except (OSError, ValueError, struct.error, AttributeError, TypeError) as error:
        raise BadCheckpoint(f"{path}: cannot be read as safetensors ({error}).") from error


def write(path: Path | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write to a temporary name beside `path`, then rename.  Raises FetchError (disk full, no permission).

    The same arrays and metadata give the same bytes.
    """
    path = Path(path)
    tensors = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
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
