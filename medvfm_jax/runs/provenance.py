"""Where a result comes from: command, seed, hashes of weights and data, versions, what was trained, when."""

import datetime
import hashlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("medvfm-jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "grain")
_READ_WHOLE = 64 << 20  # bytes; of larger files only the ends are read


def provenance(
    *, seed: int, weights_sha256: str, data_sha256: str, trained: Mapping[str, int] | None
) -> dict[str, Any]:
    """The record that goes into ``scores.json``; ``trained`` is {"parameters", "total", "bytes"} or None."""
    return {
        "command": shlex.join(["medvfm", *sys.argv[1:]]) if _is_command() else None,
        "seed": seed,
        "weights_sha256": weights_sha256,
        "data_sha256": data_sha256,
        "versions": versions(),
        "trained": None if trained is None else dict(trained),
        "device": device(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """What the program ran on, for example "cpu (2 cores, x86_64)"."""
    first = jax.devices()[0]
    if first.platform == "cpu":
        import os

        return f"cpu ({os.cpu_count()} cores, {platform.machine()})"
    return f"{first.platform} ({jax.device_count()} x {first.device_kind})"


def digest_files(files: Iterable[Path], root: Path | None = None) -> str:
    """Sha256 over names (below ``root``) and contents of files, in sorted order.

    Of a file above 64 MiB its size and its first and last 32 MiB are taken, so that terabytes stay possible.
    """
    total = hashlib.sha256()
    for path in sorted(set(files)):
        name = path.relative_to(root).as_posix() if root and path.is_relative_to(root) else path.name
        total.update(f"{name}\0{_digest_of(path)}\0".encode())
    return total.hexdigest()


def _digest_of(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= _READ_WHOLE:
            digest.update(file.read())
        else:
            digest.update(file.read(_READ_WHOLE // 2))
            file.seek(-_READ_WHOLE // 2, 2)
            digest.update(file.read())
    return digest.hexdigest()


def _is_command() -> bool:
    return Path(sys.argv[0]).name in ("medvfm", "__main__.py", "main.py")
