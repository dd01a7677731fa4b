"""What tracing gives, kept on disk: the shapes of parameters, and compiled programs.

Tracing and compiling LiteMedSAM takes longer than running it on one picture.  What is kept is known by the words its
maker gives, by all source files of this package, and by the versions, the device and its settings; so a change of any
of them traces anew.  Files have a digest: what is damaged is made again.  Nothing is kept where the cache folder cannot
be written.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from medvfm_jax import __version__, executables
from medvfm_jax.fetch import cache_dir

_DIGEST = hashlib.sha256().digest_size
_GENERATIONS = 3  # versions of the source whose traces stay on disk
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
            return _from_json(json.loads(content))
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
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    if words is None:
        announce()
        return executables.compiled(function, wanted)[0]
    leaves, tree = jax.tree.flatten(wanted)
    words = [words, str(tree), [[leaf.shape, str(leaf.dtype)] for leaf in leaves]]
    content = _read(words, "program")
    if content is not None:
        with contextlib.suppress(Exception):  # of an XLA that refuses it
            return executables.load(content, wanted)
    announce()
    run, content = executables.compiled(function, wanted)
    if content is not None:
        _write(words, "program", content)
    return run


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
    said = json.dumps([words, settings], sort_keys=True, default=str)
    return _folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.{kind}"


def _folder() -> Path:
    return cache_dir() / "traced" / _stamp()


@functools.cache
def _stamp() -> str:
    """Of everything that a trace depends on beside its words."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    said = [(str(file.relative_to(root)), *_size_and_time(file)) for file in files]
    said += [__version__, *executables.platform_words()]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read(words: Any, kind: str) -> bytes | None:
    path = _path(words, kind)
    try:
        if not path.is_file():  # nothing, or a pipe, from which reading would never end
            return None
        stored = path.read_bytes()
    except OSError:
        return None
    content = stored[:-_DIGEST]
    if stored[-_DIGEST:] == _digest(path.name, content):
        return content
    return None


def _write(words: Any, kind: str, content: bytes) -> None:
    path = _path(words, kind)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):  # a cache that cannot be written is slower, not wrong
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            _sweep(path.parent.parent)
        try:
            temporary.write_bytes(content + _digest(path.name, content))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    """Remove what earlier versions of the source kept, and what killed processes left."""
    generations = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    for old in generations[:-_GENERATIONS]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in root.rglob("*.tmp"):
        if time.time() - leftover.stat().st_mtime > _ABANDONED:
            leftover.unlink(missing_ok=True)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()
