"""Folders of results that appear when they are whole: written into a hidden folder, moved into place at the end.

A process that is killed leaves the hidden folder behind. It has a name and a lock file of its own, so that the next
attempt knows it as a leftover and clears it away, and never mistakes files of the user for it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvfm_jax.runs import run_directory


def folder_of(target: Path) -> Path:
    """The hidden folder in which the results that belong to the file ``target`` are collected."""
    return target.with_name(f".{target.name}.unfinished")


def is_left_over(target: Path) -> bool:
    """Whether an earlier attempt at ``target`` was killed."""
    return run_directory.is_locked_folder(folder_of(target))


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it is removed at the end, whatever happened.

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
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, beside: Path) -> None:
    """Move the files of each folder in ``folder`` into the folder of that name in ``beside``, replacing equal names.

    Raises RunError.
    """
    for part in _parts(folder):
        with run_directory.writing(beside / part.name):
            (beside / part.name).mkdir(parents=True, exist_ok=True)
            for path in sorted(part.iterdir()):
                os.replace(path, beside / part.name / path.name)


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _clear(folder: Path) -> None:
    for part in _parts(folder):
        shutil.rmtree(part, ignore_errors=True)
