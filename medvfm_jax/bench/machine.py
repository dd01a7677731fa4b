"""The machine under a benchmark: what it is, what a process holds, and what it can do at best."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("medvfm-jax", "jax", "jaxlib", "flax", "numpy")
_STATUS = Path("/proc/self/status")


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Processor, cores, load and versions; None for a package that is not installed.  Nothing is imported."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return {
        "versions": versions,
        "python": platform.python_version(),
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores_of_the_machine": os.cpu_count(),
        "cores_of_this_process": usable_cores(),
        "load_at_start": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def usable_cores() -> int:
    """Cores this process may run on, by which XLA sizes its pool of threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mib(field: str) -> float | None:
    """`VmHWM` (peak), `VmRSS` (now) or another field of this process, in MiB; None where the system is not Linux.

    Not ``ru_maxrss``: that of a child starts at its parent's.
    """
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


class Ceiling(NamedTuple):
    """One thing the machine does without thinking; call: does it and waits.  amount: FLOP or bytes of one call."""

    call: Callable[[], Any]
    amount: float


def product(dtype: str, side: int | None = None) -> Ceiling:
    """Product of two square matrices, compiled and warm: the roof for everything made of products.

    side: by default 2048 on a CPU and 8192 elsewhere, where a smaller one would measure the start of a kernel.
    """
    import jax
    import numpy as np

    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jax.numpy.asarray(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)).astype(dtype)
    multiply = jax.jit(lambda a: a @ a)
    call = lambda: multiply(a).block_until_ready()  # noqa: E731
    call()
    return Ceiling(call, 2.0 * side**3)


def copy(elements: int = 2**25) -> Ceiling:
    """Add one to a large float32 array: read it and write another, compiled and warm: the roof for everything else."""
    import jax

    a = jax.numpy.zeros(elements, jax.numpy.float32)
    add = jax.jit(lambda a: a + 1)
    call = lambda: add(a).block_until_ready()  # noqa: E731
    call()
    return Ceiling(call, 2.0 * a.nbytes)
