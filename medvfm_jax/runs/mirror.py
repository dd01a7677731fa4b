"""A copy of a run directory on storage that a URL names (``gs://``, ``s3://``), kept while the run goes on.

Below the URL ``files/DIGEST/NAME`` holds what files of the run held, and ``manifest.json``, written last, which of them
are the run: name, size and sha256.  A file is never changed once it is named there, so whoever reads the manifest finds
a whole run, that of the last copy which came to its end.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NamedTuple

from medvfm_jax import json_text
from medvfm_jax.fetch.storage import Storage, StorageError, first_line, open_storage
from medvfm_jax.runs import run_directory

FORMAT = 1
ATTEMPTS = 3  # at each copy
_MANIFEST, _FILES, _SNAPSHOTS, _FETCHED = "manifest.json", "files", ".mirror", ".fetched"
_BROUGHT = ".brought"  # what came whole, on its way to its place in the run


class MirrorError(run_directory.RunError):
    """The copy of a run cannot be reached, is not whole, or belongs to another run."""


class Stored(NamedTuple):
    """A file of the run as it is stored: its digest and its size in bytes."""

    sha256: str
    size: int


class _Storage(Storage):
    """Where the copy of a run lies."""

    def of(self, name: str, stored: Stored) -> str:
        return self.path(_FILES, stored.sha256[:32], name)


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
        self._storage = _open(url)
        self._there: set[str] = set()  # stored whole, as far as is known
        self._number = self.copies = self.failures = 0
        self._copied = 0  # number of the last snapshot that was copied
        self._changed, self._waiting, self._over = threading.Condition(), None, False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Mirror":
        """See what is there; raises MirrorError if it is another run, or if it cannot be read."""
        found = _manifest(self._storage)
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
    storage = _open(url)
    files = _manifest(storage)
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


def refuse_existing(url: str) -> None:
    """Raise MirrorError if there is the copy of a run; a new one needs a place of its own."""
    if _manifest(_open(url)) is not None:
        raise MirrorError(
            f"{url} already holds the copy of a run; add --resume to go on with it, or choose another --mirror."
        )


def refuse_inside(url: str, folder: Path) -> None:
    """Raise MirrorError if the copy would lie in the run directory, each copy holding those before, or around it."""
    storage = _open(url)
    protocol = storage.system.protocol
    if "file" not in ((protocol,) if isinstance(protocol, str) else protocol):
        return
    there, here = Path(storage.root).resolve(), folder.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there / _FILES):
        raise MirrorError(f"{url} and {folder} lie in each other; choose one outside of the other.")


def _open(url: str) -> _Storage:
    try:
        return _Storage(*open_storage(url))
    except StorageError as error:
        raise MirrorError(str(error)) from error


def _manifest(storage: _Storage) -> dict[str, Stored] | None:
    """What the copy consists of, None where there is none.  Raises MirrorError."""
    try:
        content = storage.system.cat_file(storage.path(_MANIFEST))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise MirrorError(
            f"{storage.url} cannot be read ({first_line(error)}); check the address, your permission and the network."
        ) from error
    try:
        record = json_text.parse_object(content)
        body = record["content"]
        if record["digest"] != _digest(body) or body["format"] != FORMAT:
            raise ValueError("its digest or format is another")
        files = {str(n): Stored(str(f["sha256"]), int(f["bytes"])) for n, f in body["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MirrorError(
            f"{storage.url}/{_MANIFEST} is not what a run writes ({first_line(error)}); give a folder of its own as "
            "--mirror, or remove what is there."
        ) from error
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part.startswith(".") for part in parts):
            raise MirrorError(f"{storage.url}/{_MANIFEST} names a file outside the run: {name!r:.80}.")
    return files


def _check_same(found: dict[str, Stored], folder: Path, url: str) -> None:
    """A copy belongs to the run whose ``config.json`` it holds, which is written once, and is not ahead of it."""
    here = folder / run_directory.CONFIG
    if not here.exists() or found.get(run_directory.CONFIG) != _stored(here):
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


def _upload(taken: Path, storage: _Storage, there: set[str]) -> None:
    """Store the files that are new, then the manifest, then drop what it no longer names.

    there: what is stored whole; kept up to date, so that a second attempt sends only what is missing.
    """
    paths = sorted(path for path in taken.rglob("*") if path.is_file())
    files = {path.relative_to(taken).as_posix(): _stored(path) for path in paths}
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
    meanwhile = _manifest(storage)
    if meanwhile is not None and meanwhile.get(run_directory.CONFIG) != files.get(run_directory.CONFIG):
        raise MirrorError(f"another run has begun to copy itself to {storage.url}")
    body = {
        "format": FORMAT,
        "time": round(time.time(), 3),
        "files": {name: {"sha256": stored.sha256, "bytes": stored.size} for name, stored in files.items()},
    }
    content = json.dumps({"digest": _digest(body), "content": body}, indent=1).encode()
    storage.system.makedirs(storage.root, exist_ok=True)
    storage.system.pipe_file(storage.path(f"{_MANIFEST}.new"), content)
    storage.system.mv(storage.path(f"{_MANIFEST}.new"), storage.path(_MANIFEST))
    there &= kept
    with contextlib.suppress(Exception):  # what is left takes room, and is tried again with the next copy
        for remote in storage.system.find(storage.path(_FILES)):
            if remote not in kept:
                storage.system.rm_file(remote)


def _download(storage: _Storage, name: str, stored: Stored, target: Path) -> None:
    remote = storage.of(name, stored)
    try:
        storage.system.get_file(remote, str(target))
    except Exception as error:
        raise MirrorError(
            f"{storage.url} cannot be brought here: {name} ({first_line(error)}); start the same command again."
        ) from error
    if _stored(target) != stored:
        raise MirrorError(
            f"{storage.url} is damaged: {name} is not what the run wrote; give another copy, or start the run anew "
            "with another --mirror."
        )


def _stored(path: Path) -> Stored:
    with open(path, "rb") as file:
        return Stored(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
