"""Results that appear when they are whole: written into a hidden folder, moved into place at the end.

A process that is killed, or stopped while it moves, leaves the hidden folder behind. It has a name and a lock file of
its own, so that the next attempt knows it as a leftover, clears it away, and never mistakes files of the user for it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvfm_jax.runs import run_directory

_MOVING = "moving"  # in the hidden folder: what belongs to the file may be in place in part


def folder_of(target: Path) -> Path:
    """The hidden folder in which the results that belong to the file ``target`` are collected."""
    return target.with_name(f".{target.name}.unfinished")


def is_left_over(target: Path) -> bool:
    """Whether an earlier attempt at ``target`` was killed, or stopped while its results were moved into place."""
    return run_directory.is_locked_folder(folder_of(target))


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it is removed at the end, unless ``publish`` was stopped halfway.

    Call ``publish`` before, when everything is there. Raises RunInUse if another process does the same, RunError if
    there is a folder of that name that is not ours.
    """
    folder = folder_of(target)
    if folder.exists() and not run_directory.is_locked_folder(folder):
        raise run_directory.RunError(f"{folder} is in the way and was not made by medvfm; move it away.")
    with run_directory.locked(folder):
        _clear(folder)  # of a process that was killed
        try:
            yield folder
        finally:
            if not (folder / _MOVING).exists():
                shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Move the files of each folder in ``folder`` beside ``target``, replacing equal names, and then ``target`` itself.

    Raises RunError.
    """
    mark = folder / _MOVING
    with run_directory.writing(target):
        mark.touch()
    for part in _parts(folder):
        place = target.with_name(part.name)
        with run_directory.writing(place):
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(part.iterdir()):
                os.replace(path, place / path.name)
    with run_directory.writing(target):
        os.replace(folder / target.name, target)
    mark.unlink()


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _clear(folder: Path) -> None:
    for part in _parts(folder):
        shutil.rmtree(part, ignore_errors=True)
    (folder / _MOVING).unlink(missing_ok=True)
