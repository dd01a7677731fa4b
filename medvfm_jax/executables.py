"""Compiled programs as bytes: what XLA made of a function, loaded again without tracing, lowering or compiling.

``jax.experimental.serialize_executable`` does the same with pickle, which this package never loads; here the bytes are
a line of JSON, which says what goes in and comes out, and XLA's own form of the executable.  They fit one kind of
device and one version of XLA; ``platform_words`` says which.  As with JAX's compilation cache, whoever can write them
can run code: they belong into a folder of the user's own.
"""

import contextlib
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache
from jaxlib import _jax

# Lines of /proc/cpuinfo that stay the same while a machine runs.
_TELLING = (
    "vendor_id",
    "cpu family",
    "model",
    "stepping",
    "flags",
    "Features",
    "CPU implementer",
    "CPU part",
)
_CALLS_PYTHON = "callback"  # in the name of every custom call that holds an address of this process


def compiled(
    function: Callable[..., Any], inputs: tuple[Any, ...]
) -> tuple[Callable[..., Any], bytes | None]:
    """Compile for inputs of these shapes -> (what runs it, its bytes).

    inputs: nested dictionaries and tuples of ``jax.ShapeDtypeStruct``.  No bytes for a function that calls back into
    Python, for one that returns anything else than nested dictionaries of arrays, and on devices that give none.
    """
    lowered = jax.jit(function, keep_unused=True).lower(*inputs)
    with _compiled_here():
        run = lowered.compile()
    indices = jax.tree.unflatten(run.out_tree, range(run.out_tree.num_leaves))
    if not _is_plain(indices) or _CALLS_PYTHON in lowered.as_text():
        return run, None
    try:
        stored = run.runtime_executable().serialize()
    except jax.errors.JaxRuntimeError:  # a device whose executables have no such form
        return run, None
    return run, json.dumps(indices).encode() + b"\n" + stored


@contextlib.contextmanager
def _compiled_here() -> Iterator[None]:
    """No executable out of JAX's compilation cache: XLA writes one that it has read without some of its functions."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX remembers whether there is one
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def load(content: bytes, inputs: tuple[Any, ...]) -> Callable[..., Any]:
    """What ``compiled`` gave as bytes -> what runs it; raises whatever XLA raises for bytes of another version."""
    names, _, stored = content.partition(b"\n")
    indices, (device, *_) = json.loads(names), jax.local_devices()
    executable = device.client.deserialize_executable(stored, _jax.DeviceList((device,)), None)
    expected, tree = jax.tree.flatten(inputs)

    def run(*given: Any) -> Any:
        leaves, found = jax.tree.flatten(given)
        if found != tree or any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(leaves, expected)):
            raise TypeError("A compiled program takes inputs of the shapes and types it was compiled for.")
        results = executable.execute_sharded(jax.device_put(leaves, device))
        arrays = [array for (array,) in results.disassemble_into_single_device_arrays()]
        return jax.tree.map(lambda index: arrays[index], indices)

    return run


def platform_words() -> list[str]:
    """What bytes of an executable depend on beside the function: versions, device, its instructions, settings."""
    device = jax.local_devices()[0]
    return [
        jax.__version__,
        jaxlib.__version__,
        device.platform,
        device.device_kind,
        device.client.platform_version,
        os.environ.get("XLA_FLAGS", ""),
        platform.machine(),
        _instructions(),
    ]


def _instructions() -> str:
    """Digest of what Linux tells of the first processor's model and instruction sets; elsewhere its name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = itertools.takewhile(str.strip, file)  # other processors follow after an empty line
            said = [line for line in lines if line.partition(":")[0].strip() in _TELLING]
    except OSError:
        return platform.processor()
    return hashlib.sha256("".join(said).encode()).hexdigest()


def _is_plain(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(type(name) is str and _is_plain(child) for name, child in tree.items())
    return type(tree) is int
