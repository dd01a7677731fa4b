"""What was found in files, kept in the cache directory until the files change; damaged, it is not used, and said."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import medvfm_jax
from medvfm_jax.fetch import cache_dir

_FORMAT = 4
_LARGEST = 256 << 20  # bytes of a file that can be ours


def cache_file(*settings: object) -> Path:
    """One file per subject and settings, and per version of this program."""
    words = repr((medvfm_jax.__version__, _FORMAT, *settings))
    return cache_dir() / "checks" / f"{hashlib.sha256(words.encode(errors='replace')).hexdigest()[:32]}.json"


def key_of(*paths: Path | None) -> str | None:
    """Names, sizes and times of files as one word; None if one of them is not there."""
    words: list[Any] = []
    try:
        for path in paths:
            state = None if path is None else path.stat()
            # The time of the last change of the inode as well: no program sets it, so a file that was replaced and
            # given its old modification time is known.
            times = () if state is None else (state.st_mtime_ns, state.st_ctime_ns)
            words.append(None if state is None else (str(path), state.st_size, *times, state.st_ino))
    except OSError:
        return None
    return hashlib.sha256(repr(words).encode(errors="replace")).hexdigest()[:32]


def load(path: Path, parse: Callable[[Any], Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Key -> what was found, as ``parse`` makes it of JSON; empty, and said, if the file is damaged."""
    try:
        if path.exists() and not path.is_file():  # reading from a pipe would never end
            raise ValueError("no file")
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        record = json.loads(path.read_bytes())
        if record["sha256"] != _digest(record["found"]):
            raise ValueError("wrong digest")
        return {key: parse(value) for key, value in record["found"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        say(f"what earlier checks found is damaged and not used; all files are read again ({path})")
        return {}


def store(path: Path, found: Mapping[str, Any]) -> None:
    """Replace the file in one step; a cache that cannot be written is slower, not wrong."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump({"sha256": _digest(found), "found": found}, file)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _digest(found: object) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
