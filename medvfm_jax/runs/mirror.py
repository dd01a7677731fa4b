"""Keep a copy of a run directory on storage that a URL names (``gs://``, ``s3://``) while the run goes on."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from types import TracebackType

from medvfm_jax.fetch.storage import first_line
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.stored_copy import (
    FILES,
    FORMAT,
    MANIFEST,
    MirrorError,
    RunStorage,
    Stored,
    digest_of,
    open_copy,
    read_manifest,
    stored_as,
)

ATTEMPTS = 3  # at each copy
_SNAPSHOTS = ".mirror"


class Mirror:
    """Copies a run directory in the background, as often as it is told to; use it as a context.

    What is copied is a snapshot: checkpoints and traces are linked, other files copied, into a hidden folder, so that
    training may go on and drop old checkpoints.  If one copy is still under way when the next is due, the newest waits
    and those between are left out.  A copy that fails three times is counted and said, and the run goes on.

    Args:
        folder: the run directory, on this machine.
        url: where the copy lies, a folder of its own.
        say: told of copies that failed.
        pause: seconds before the second attempt at a copy; before the third twice as long.
    """

    def __init__(
        self, folder: Path, url: str, say: Callable[[str], None] = lambda text: None, pause: float = 1.0
    ):
        self._folder, self._say, self._pause = folder, say, pause
        self._storage = open_copy(url)
        self._there: set[str] = set()  # stored whole, as far as is known
        self._number = self.copies = self.failures = 0
        self._copied = 0  # number of the last snapshot that was copied
        self._changed, self._waiting, self._over = threading.Condition(), None, False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Mirror":
        """See what is there; raises MirrorError if it is another run, or if it cannot be read."""
        found = read_manifest(self._storage)
        if found is not None:
            _check_same(found, self._folder, self._storage.url)
            self._there = {self._storage.of(name, stored) for name, stored in found.items()}
        shutil.rmtree(self._folder / _SNAPSHOTS, ignore_errors=True)  # of a process that was killed
        self._thread.start()
        if found is None:
            self.update()  # the settings at once, so that a run that begins now finds whose place it is
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Copy how the run ended, and wait for it."""
        try:
            self.update()
        finally:
            with self._changed:
                self._over = True
                self._changed.notify()
            self._thread.join()
            shutil.rmtree(self._folder / _SNAPSHOTS, ignore_errors=True)
        tried = self.copies + self.failures
        failed = f"; {self.failures} of {tried} attempts at a copy failed" if self.failures else ""
        whole = (
            "holds the run as it is here"
            if self._copied == self._number
            else "does not hold the end of the run"
        )
        self._say(f"{self._storage.url} {whole}{failed}")

    def update(self) -> None:
        """Copy the run as it is now, in the background."""
        self._number += 1
        taken = self._folder / _SNAPSHOTS / str(self._number)
        try:
            _take_snapshot(self._folder, taken)
        except OSError as error:
            shutil.rmtree(taken, ignore_errors=True)  # a full disk gets no fuller
            self._failed(error)
            return
        with self._changed:
            left_out, self._waiting = self._waiting, taken
            self._changed.notify()
        if left_out is not None:
            shutil.rmtree(left_out, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._over)
                taken, self._waiting = self._waiting, None
            if taken is None:
                return
            self._copy(taken)
            shutil.rmtree(taken, ignore_errors=True)

    def _copy(self, taken: Path) -> None:
        for attempt in range(ATTEMPTS):
            try:
                _upload(taken, self._storage, self._there)
                self.copies += 1
                self._copied = int(taken.name)
                return
            except Exception as error:  # whatever the storage raises, training goes on
                if attempt + 1 == ATTEMPTS:
                    self._failed(error)
                else:
                    time.sleep(self._pause * 2**attempt)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._say(
            f"the run could not be copied to {self._storage.url} ({first_line(error)}); it goes on, and what is there "
            "stays as it was"
        )


def refuse_existing(url: str) -> None:
    """Raise MirrorError if there is the copy of a run; a new one needs a place of its own."""
    if read_manifest(open_copy(url)) is not None:
        raise MirrorError(
            f"{url} already holds the copy of a run; add --resume to go on with it, or choose another --mirror."
        )


def _check_same(found: dict[str, Stored], folder: Path, url: str) -> None:
    """A copy belongs to the run whose ``config.json`` it holds, which is written once, and is not ahead of it."""
    here = folder / run_directory.CONFIG
    if not here.exists() or found.get(run_directory.CONFIG) != stored_as(here):
        raise MirrorError(
            f"{url} holds the copy of another run than {folder}; choose another --mirror, or go on with that run by "
            "--resume with an empty --out."
        )
    below = here.parent / run_directory.CHECKPOINTS
    whole = (
        [path for path in below.iterdir() if run_directory.is_whole_checkpoint(path)]
        if below.is_dir()
        else []
    )
    steps, copied = _last_step(path.name for path in whole), _last_step(map(_checkpoint_of, found))
    if copied > steps:
        raise MirrorError(
            f"{url} holds a checkpoint of step {copied} of this run, {folder} none after step {steps}; go on from "
            "there by --resume with an empty --out, or choose another --mirror: a copy of this one would replace it."
        )


def _checkpoint_of(name: str) -> str:
    """The checkpoint that a file of a run is part of, "" for other files."""
    parts = PurePosixPath(name).parts
    return parts[1] if len(parts) > 2 and parts[0] == run_directory.CHECKPOINTS else ""


def _last_step(checkpoints: Iterable[str]) -> int:
    """Of names such as step_00000120 and 120; 0 without any."""
    numbers = (name.removeprefix("step_") for name in checkpoints)
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _take_snapshot(folder: Path, target: Path) -> None:
    """Files of the run as they are now; a checkpoint that disappears meanwhile is left out whole."""
    target.mkdir(parents=True)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.name == run_directory.PROFILE:
            shutil.copytree(entry, target / entry.name, copy_function=_link)
            continue
        if entry.name != run_directory.CHECKPOINTS:  # files that are written to in place
            copy = shutil.copytree if entry.is_dir() else shutil.copy2
            copy(entry, target / entry.name)
            continue
        (target / entry.name).mkdir()
        for checkpoint in sorted(entry.iterdir()):
            if not run_directory.is_whole_checkpoint(checkpoint):
                continue
            linked = target / entry.name / checkpoint.name
            try:
                shutil.copytree(checkpoint, linked, copy_function=_link)
            except (FileNotFoundError, shutil.Error):
                shutil.rmtree(linked, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _upload(taken: Path, storage: RunStorage, there: set[str]) -> None:
    """Store the files that are new, then the manifest, then drop what it no longer names.

    there: what is stored whole; kept up to date, so that a second attempt sends only what is missing.
    """
    paths = sorted(path for path in taken.rglob("*") if path.is_file())
    files = {path.relative_to(taken).as_posix(): stored_as(path) for path in paths}
    kept = {storage.of(name, stored) for name, stored in files.items()}
    for name, stored in files.items():
        remote = storage.of(name, stored)
        if remote in there:
            continue
        storage.system.makedirs(remote.rpartition("/")[0], exist_ok=True)
        storage.system.put_file(str(taken / name), remote)
        if storage.system.info(remote)["size"] != stored.size:
            raise OSError(f"{remote} was not stored whole")
        there.add(remote)
    meanwhile = read_manifest(storage)
    if meanwhile is not None and meanwhile.get(run_directory.CONFIG) != files.get(run_directory.CONFIG):
        raise MirrorError(f"another run has begun to copy itself to {storage.url}")
    body = {
        "format": FORMAT,
        "time": round(time.time(), 3),
        "files": {name: {"sha256": stored.sha256, "bytes": stored.size} for name, stored in files.items()},
    }
    content = json.dumps({"digest": digest_of(body), "content": body}, indent=1).encode()
    storage.system.makedirs(storage.root, exist_ok=True)
    storage.system.pipe_file(storage.path(f"{MANIFEST}.new"), content)
    storage.system.mv(storage.path(f"{MANIFEST}.new"), storage.path(MANIFEST))
    there &= kept
    with contextlib.suppress(Exception):  # what is left takes room, and is tried again with the next copy
        for remote in storage.system.find(storage.path(FILES)):
            if remote not in kept:
                storage.system.rm_file(remote)
