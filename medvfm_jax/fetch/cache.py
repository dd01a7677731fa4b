"""The folder where fetched files live: locked, verified, renamed into place, never half-written."""

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medvfm_jax import local_paths
from medvfm_jax.printable import counted
from medvfm_jax.types import MedvfmError

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there the rename alone keeps readers safe
    fcntl = None


ABANDONED_AFTER_S = 86400.0  # age of an abandoned temporary file, where files cannot be locked


class FetchError(MedvfmError):
    """A file could not be obtained."""


class WrongDigest(FetchError):
    """A file is not the file it claims to be: its size or sha256 differs from the recorded one."""


def cache_dir() -> Path:
    """The cache folder; not created here.

    Returns:
        `MEDVFM_CACHE`, by default `~/.cache/medvfm`.

    Raises:
        BadPath: a path that is not on this machine.
    """
    configured = os.environ.get("MEDVFM_CACHE")
    if configured:
        local_paths.check(configured, "MEDVFM_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "medvfm"


def sha256_of(path: Path) -> str:
    """Digest of a file, read in pieces of 1 MiB.

    Args:
        path: the file.

    Returns:
        Hexadecimal sha256.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def verify(path: Path, sha256: str | None, size: int | None) -> str:
    """Check a file against its recorded size and sha256.

    Args:
        path: the file.
        sha256: hexadecimal, None: not known.
        size: in bytes, None: not known.

    Returns:
        Its sha256.

    Raises:
        FetchError: the file is missing.
        WrongDigest: it is another file.
    """
    if not path.is_file():
        raise FetchError(f"{path} does not exist or is not a file.")
    remedy = "delete it and fetch it again" if cache_dir() in path.parents else "fetch it again"
    actual_size = path.stat().st_size
    if size is not None and actual_size != size:
        raise WrongDigest(
            f"{path} has {counted(actual_size, 'byte')} where {size} were expected: it is truncated or another file; "
            f"{remedy}."
        )
    actual = sha256_of(path)
    if sha256 is not None and actual != sha256:
        raise WrongDigest(
            f"{path} has sha256 {actual} where {sha256} was expected: it is damaged or another file; "
            f"{remedy}."
        )
    return actual


@contextmanager
def lock(target: Path) -> Iterator[None]:
    """Let one process at a time produce `target`; the others wait. A dead process holds no lock.

    Raises FetchError where the folder cannot be written.
    """
    make_folder(target.parent)
    try:
        handle = open(target.parent / f".{target.name}.lock", "w")  # noqa: SIM115, closed below
    except OSError as error:
        raise explain(error, target) from error
    with handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, removed again unless it was renamed away.

    It is locked as long as this process lives, so that those of killed processes are known and removed.
    """
    local_paths.check(target, "The file to write")
    make_folder(target.parent)
    remove_leftovers(target)
    handle, path = _locked_file(target)
    try:
        yield path
    except OSError as error:
        raise explain(error, target) from error
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked_file(target: Path) -> tuple[int, Path]:
    """A new temporary file and the handle whose lock says that its process lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        _lock_now(handle)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # another process took it for a leftover before it was locked


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files beside `target` whose processes were killed while writing them."""
    ours = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.tmp")  # what `temporary` calls them
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if not ours.fullmatch(path.name):
            continue
        with suppress(OSError), open(path, "rb+") as file:  # gone already, or another process's
            abandoned = _lock_now(file.fileno())
            if abandoned is None:
                abandoned = time.time() - path.stat().st_mtime > ABANDONED_AFTER_S
            if abandoned:
                path.unlink(missing_ok=True)


def _lock_now(handle: int) -> bool | None:
    """Lock a file unless another process holds it; whether it is locked now, None where locks are not known."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def publish(temporary_path: Path, target: Path) -> None:
    """Make a finished file visible under its real name in one step, on disk before it is visible."""
    with open(temporary_path, "rb+") as file:
        os.fsync(file.fileno())
    os.chmod(temporary_path, 0o644)
    os.replace(temporary_path, target)


def make_folder(folder: Path) -> None:
    """Create a folder of the cache; FetchError says which one could not be created and why."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder) from error


def explain(error: OSError, target: Path) -> FetchError:
    """An operating-system error while writing `target` -> one sentence a user can act on."""
    cached = target.is_relative_to(cache_dir())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "set MEDVFM_CACHE to another disk" if cached else "choose another place"
        return FetchError(f"The disk is full while writing {target}; free space or {remedy}.")
    remedy = "set MEDVFM_CACHE to another" if cached else "choose another"
    return FetchError(f"Cannot write {target}: {error.strerror or error}; check the folder or {remedy}.")
