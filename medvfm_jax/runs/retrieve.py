"""Bring the copy of a run that storage holds into a run directory, every file verified."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from medvfm_jax.fetch.storage import first_line
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.stored_copy import (
    MirrorError,
    RunStorage,
    Stored,
    open_copy,
    read_manifest,
    refuse_inside,
    stored_as,
)

_FETCHED = ".fetched"
_BROUGHT = ".brought"  # what came whole, on its way to its place in the run


def fetch_new(url: str, folder: Path, track: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> int:
    """Bring the copy of a run into a new or empty folder, or end what an earlier attempt began.

    Args:
        url, folder, track: as ``fetch``.

    Returns:
        The number of its files.

    Raises:
        MirrorError: there is no copy, or something else in the folder; and what ``fetch`` raises.
        RunError: the folder cannot be written.
    """
    refuse_inside(url, folder)
    if (folder / _BROUGHT).is_dir():  # an attempt was killed after all of it had come
        finish(folder)
        return sum(path.is_file() for path in folder.rglob("*"))
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if other := [name for name in found if not name.startswith(_FETCHED)]:
        raise MirrorError(f"{folder} holds {other[0]!r:.80} already; give a new or empty folder as --out.")
    files = fetch(url, folder, track)
    if not files:
        raise MirrorError(f"{url} holds no copy of a run; give the URL that `adapt` was given as --mirror.")
    return files


def fetch(url: str, folder: Path, track: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> int:
    """Bring the copy of a run into a folder that holds none, every file verified.

    Args:
        url: as given to ``Mirror``.
        folder: of the run; it appears whole, its settings last.
        track: shows how far it is, see ``progress.tracked``.

    Returns:
        The number of its files, 0 where there is no copy.

    Raises:
        MirrorError: the storage cannot be reached, or what is there is not what was copied.
        RunError: the folder cannot be written.
    """
    storage = open_copy(url)
    files = read_manifest(storage)
    if files is None:
        return 0
    temporary = folder / f"{_FETCHED}.{os.getpid()}"
    try:
        with run_directory.writing(folder):
            _clear_leftovers(folder)
            for name, stored in track(list(files.items())):
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                _download(storage, name, stored, target)
            _move(temporary, folder / _BROUGHT)
            finish(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(files)


def finish(folder: Path) -> None:
    """Put the rest of a run in its place whose process was killed after all of it had come; else nothing is done.

    Raises RunError if the folder cannot be written.
    """
    brought = folder / _BROUGHT
    if not brought.is_dir():
        return
    with run_directory.writing(folder):
        if not (folder / run_directory.CONFIG).exists():
            names = sorted(path.name for path in brought.iterdir())
            for name in sorted(names, key=run_directory.CONFIG.__eq__):  # the settings last
                _move(brought / name, folder / name)
    shutil.rmtree(brought, ignore_errors=True)


def _clear_leftovers(folder: Path) -> None:
    """Drop what processes of this host that were killed were bringing: it takes room, and may be of an older copy."""
    for leftover in folder.glob(f"{_FETCHED}.*"):
        number = leftover.suffix[1:]
        if number == str(os.getpid()) or (number.isdecimal() and not _runs(int(number))):
            shutil.rmtree(leftover, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether there is such a process; where that cannot be asked without ending it (Windows), it is taken to run."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        faster = error.errno == errno.ENOENT and not source.exists() and target.exists()
        if not faster and error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
            raise


def _download(storage: RunStorage, name: str, stored: Stored, target: Path) -> None:
    remote = storage.of(name, stored)
    try:
        storage.system.get_file(remote, str(target))
    except Exception as error:
        raise MirrorError(
            f"{storage.url} cannot be brought here: {name} ({first_line(error)}); start the same command again."
        ) from error
    if stored_as(target) != stored:
        raise MirrorError(
            f"{storage.url} is damaged: {name} is not what the run wrote; give another copy, or start the run anew "
            "with another --mirror."
        )
