"""What takes long, kept on disk: shapes that were traced, compiled programs, converted weights.

Tracing and compiling LiteMedSAM takes longer than running it on one picture.  What is kept is known by the words its
maker gives, by all source files of this package, and by the versions, the device and its settings; so a change of any
of them traces anew.  Files have a digest: what is damaged is made again.  Nothing is kept where the cache folder cannot
be written.
"""

import contextlib
import functools
import hashlib
import json
import math
import mmap
import os
import secrets
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medvfm_jax import __version__, executables
from medvfm_jax.fetch import cache_dir

_DIGEST = hashlib.sha256().digest_size
LARGEST = 2**30  # bytes of arrays that are kept together
_ALIGNED = 64  # bytes; XLA copies arrays that begin elsewhere
MOST = 8 * 2**30  # bytes of all that is kept; what was not used for longest goes first
_UNUSED = 30 * 24 * 3600  # seconds after which a file goes in any case
_ABANDONED = (
    3600  # seconds after which a file that is still being written belongs to a process that was killed
)


def shapes(words: Any, compute: Callable[[], Any]) -> Any:
    """Nested dictionaries of ``jax.ShapeDtypeStruct``, as ``compute`` traces them or as they were kept.

    words: JSON-able, everything that the shapes follow from.
    """
    content = _read(words, "json")
    if content is not None:
        with contextlib.suppress(
            ValueError, TypeError, AttributeError, RecursionError
        ):  # not what `_to_json` gives
            return _from_json(json.loads(bytes(content)))
    found = compute()
    _write(words, "json", json.dumps(_to_json(found)).encode())
    return found


def program(
    words: Any, function: Callable[..., Any], *inputs: Any, announce: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    """``function``, compiled for inputs of these shapes; traced and compiled only if it was not kept.

    words: JSON-able, everything that the function follows from; None keeps nothing.  inputs: nested dictionaries and
    tuples of arrays or shapes; the function returns nested dictionaries of arrays.  What cannot be kept, because it
    calls back into Python, is compiled all the same.  announce: called where tracing and compiling lie ahead, which
    take seconds.
    """
    if words is None:
        announce()
        return jax.jit(function)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    leaves, tree = jax.tree.flatten(wanted)
    words = [words, str(tree), [[leaf.shape, str(leaf.dtype)] for leaf in leaves]]

    def made() -> Callable[..., Any]:
        announce()
        run, content = executables.compiled(function, wanted)
        if content is not None:
            _write(words, "program", content)
        return run

    content = _read(words, "program")
    if content is not None:
        with contextlib.suppress(Exception):  # of an XLA that refuses it
            return _proven(executables.load(bytes(content), wanted), made)
    return made()


def _proven(kept: Callable[..., Any], made: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """``kept``, in whose place another one is made if XLA finds at a call that something is missing in it."""
    runs = [kept]

    def run(*given: Any) -> Any:
        try:
            return runs[0](*given)
        except jax.errors.JaxRuntimeError:
            if runs[0] is not kept:
                raise
            runs[0] = made()
            return runs[0](*given)

    return run


def facts(words: Any) -> dict[str, Any] | None:
    """What ``keep_facts`` was given for these words, None where nothing is kept."""
    content = _read(words, "facts")
    return None if content is None else json.loads(bytes(content))


def keep_facts(words: Any, said: dict[str, Any]) -> None:
    """Keep something JSON-able that takes long to find out."""
    _write(words, "facts", json.dumps(said).encode())


def arrays(words: Any) -> dict[str, Any] | None:
    """The nested arrays that ``keep_arrays`` was given for these words, memory-mapped; None where nothing is kept.

    Every byte is checked against the digest of the file, so that what was damaged on the disk is not found.
    """
    content = _read(words, "arrays")
    if content is None:
        return None
    header = bytes(content[: content.obj.find(b"\n")])
    first = _aligned(len(header) + 1)

    def mapped(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: mapped(child) for name, child in tree.items()}
        dtype, shape, start = tree
        return np.frombuffer(content, dtype, math.prod(shape), first + start).reshape(shape)

    return mapped(json.loads(header))


def keep_arrays(words: Any, tree: Mapping[str, Any]) -> None:
    """Keep nested arrays of numpy's own types; above ``LARGEST`` bytes the disk is worth more than the time."""
    if sum(array.nbytes for array in jax.tree.leaves(tree)) > LARGEST:
        return
    pieces, end = [], 0

    def placed(tree: Any) -> Any:
        nonlocal end
        if isinstance(tree, Mapping):
            return {name: placed(child) for name, child in tree.items()}
        array, start = np.ascontiguousarray(tree), end
        end = _aligned(start + array.nbytes)
        pieces.extend((array.reshape(-1).view(np.uint8).data, bytes(end - start - array.nbytes)))
        return [array.dtype.str, tree.shape, start]

    header = json.dumps(placed(tree)).encode()
    _write(words, "arrays", header + b"\n" + bytes(_aligned(len(header) + 1) - len(header) - 1), *pieces)


def _aligned(position: int) -> int:
    return -(-position // _ALIGNED) * _ALIGNED


def _to_json(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _to_json(child) for name, child in tree.items()}
    return [list(tree.shape), str(tree.dtype)]


def _from_json(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _from_json(child) for name, child in tree.items()}
    shape, dtype = tree
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _path(words: Any, kind: str) -> Path:
    config = jax.config
    settings = [os.environ.get("MEDVFM_KERNELS"), config.jax_enable_x64, config.jax_default_matmul_precision]
    said = json.dumps(
        [words, settings], default=str
    )  # as ordered: that of the parts of a chain of adapters matters
    return _folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.{kind}"


def _folder() -> Path:
    return cache_dir() / "traced" / _stamp()


@functools.cache
def _stamp() -> str:
    """Of everything that a trace depends on beside its words."""
    said = [*_SOURCE, __version__, metadata.version("flax"), *executables.platform_words()]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _source() -> list[tuple[Any, ...]]:
    """Every source file of this package in its present state."""
    root = Path(__file__).parent
    return [(str(file.relative_to(root)), *_size_and_time(file)) for file in sorted(root.rglob("*.py"))]


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


_SOURCE = _source()  # as this process imports it: what an editor writes later is another source


def _read(words: Any, kind: str) -> memoryview | None:
    """What is kept, mapped into memory: its pages are shared with other processes and read when they are used."""
    path = _path(words, kind)
    if _source() != _SOURCE:
        return None
    try:
        if not path.is_file():  # nothing, or a pipe, from which reading would never end
            return None
        with open(path, "rb") as file:
            stored = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    content = memoryview(stored)[:-_DIGEST]
    if stored[-_DIGEST:] == _digest(path, content):
        with contextlib.suppress(OSError):
            os.utime(path)  # used now, see `_sweep`
        return content
    return None


def _write(words: Any, kind: str, *pieces: Any) -> None:
    path = _path(words, kind)
    if _source() != _SOURCE:  # unknown which of the two made it
        return
    temporary = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError):  # a cache that cannot be written is slower, not wrong
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                for piece in (*pieces, _digest(path, *pieces)):
                    file.write(piece)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sweep(path.parent.parent)


def _sweep(root: Path) -> None:
    """Remove what was not used for longest, as far as it is too much or too old, and what killed processes left."""
    now, total = time.time(), 0
    found = [(file, file.stat()) for file in root.rglob("*.*") if file.is_file()]
    for file, status in sorted(found, key=lambda one: -one[1].st_mtime):
        unfinished = file.suffix == ".tmp"
        total += 0 if unfinished else status.st_size
        if total > MOST or now - status.st_mtime > (_ABANDONED if unfinished else _UNUSED):
            file.unlink(missing_ok=True)
    for folder in root.iterdir():
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def _digest(path: Path, *pieces: Any) -> bytes:
    """Of a file's content, its name and its folder: what belongs to other words or another source is not read."""
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}".encode())
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
