"""A folder of files on storage that a URL names, brought into the cache once for each state it is found in."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from medvfm_jax import json_text
from medvfm_jax.fetch.cache import FetchError, cache_dir, explain, lock, make_folder
from medvfm_jax.fetch.progress import bar
from medvfm_jax.fetch.storage import Storage, StorageError, first_line, open_storage
from medvfm_jax.printable import counted

_TOGETHER = 64  # files; storage over a network is asked for them side by side
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)  # not of what is read from
_SIZES = ".sizes.json"  # beside the folder in a state
# What file systems say of a file that changes with its content.
_VERSION = ("size", "ETag", "etag", "md5Hash", "content_md5", "LastModified", "updated", "mtime", "created")


class Fetched(NamedTuple):
    """A folder on this machine.

    Attributes:
        folder: the files, named as at the URL.
        others: how many other states of the same URL the cache holds.
        room: the folder that holds all of them.
    """

    folder: Path
    others: int
    room: Path


def fetch_folder(url: str, *, offline: bool = False) -> Fetched:
    """Bring all files below a URL here, unless the cache has them as they are there now.

    The state is told by names, sizes and what the storage says of each file's version (an entity tag, or its times).

    Args:
        url: a folder on storage that fsspec knows.
        offline: take the state that was brought last, and ask nobody.

    Returns:
        Where the files are.

    Raises:
        FetchError: the storage cannot be reached, holds nothing there, or what came is not whole; offline: nothing
            was brought before; the copy in the cache has lost files; the cache cannot be written.
    """
    url = url.rstrip("/")
    room = cache_dir() / "folders" / hashlib.sha256(url.encode()).hexdigest()[:16]
    name = PurePosixPath(url).name
    if offline:
        states = sorted(_states(room), key=lambda path: path.stat().st_mtime)
        if not states:
            raise FetchError(f"{url} was never brought here; leave out --offline once.")
        _check_kept(states[-1] / name, _sizes(states[-1]))
        return Fetched(states[-1] / name, len(states) - 1, room)
    storage = open_storage(url)
    files = _listed(storage)
    target = room / _state(files)[:16]
    if not target.is_dir():  # it has its name once it is whole; a cache that can only be read serves it too
        with lock(target):
            if not target.is_dir():  # else another process was faster
                _bring(storage, files, target, name)
    _check_kept(target / name, {part: int(info["size"]) for part, info in files.items()})
    with suppress(OSError):  # a cache that is another user's
        os.utime(target)  # the last one used
    return Fetched(target / name, len(_states(room)) - 1, room)


def _states(room: Path) -> list[Path]:
    return [path for path in room.iterdir() if path.is_dir() and path.name[0] != "."] if room.is_dir() else []


def _state(files: Mapping[str, Mapping[str, Any]]) -> str:
    return hashlib.sha256(repr(sorted((n, _version(info)) for n, info in files.items())).encode()).hexdigest()


def _version(info: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={info[key]}" for key in _VERSION if key in info)


def _listed(storage: Storage) -> dict[str, Mapping[str, Any]]:
    """Name below the URL -> what the storage says of the file; raises StorageError."""
    try:
        found = storage.system.find(storage.root, detail=True)
    except Exception as error:
        raise StorageError(
            f"{storage.url} cannot be read ({first_line(error)}); check the address, your permission and the network, "
            "or add --offline to use what was brought last."
        ) from error
    files: dict[str, Mapping[str, Any]] = {}
    above = storage.root.rstrip("/") + "/"
    for path, info in found.items():
        if info.get("type") != "file" or path.endswith(
            "/"
        ):  # a bucket may hold empty objects named like folders
            continue
        if path == storage.root:
            raise StorageError(f"{storage.url} is a file; give the URL of the folder.")
        if type(info.get("size")) is not int:
            raise StorageError(
                f"{storage.url} does not say how large {path!r:.80} is, so whether it came whole cannot be told; copy "
                "the folder here and give its path."
            )
        name = path.removeprefix(above)
        if name == path or ".." in PurePosixPath(name).parts or name.startswith("/") or "\\" in name:
            raise StorageError(f"{storage.url} holds a file with a name that leads elsewhere: {path!r:.80}.")
        files[name] = info
    if not files:
        raise StorageError(f"{storage.url} holds no files; give the URL of a folder.")
    return files


def _bring(storage: Storage, files: Mapping[str, Mapping[str, Any]], target: Path, name: str) -> None:
    """All files into a hidden folder beside `target`, which is renamed when they are whole."""
    make_folder(target.parent)
    for leftover in target.parent.glob(f".{target.name}-*"):  # under the lock: of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    total, done, names = sum(int(info["size"]) for info in files.values()), 0, sorted(files)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with bar(f"{name} ({counted(len(files), 'file')})") as progress:
            for first in range(0, len(names), _TOGETHER):
                some = names[first : first + _TOGETHER]
                here = [temporary / name / part for part in some]
                for path in here:
                    path.parent.mkdir(parents=True, exist_ok=True)
                _get(storage, some, here)
                for part, path in zip(some, here):
                    _check_whole(storage, part, path, int(files[part]["size"]))
                done += sum(int(files[part]["size"]) for part in some)
                progress(done, total)
        if _state(_listed(storage)) != _state(files):  # a file of the same size may be another one
            raise StorageError(
                f"{storage.url} changed while it was brought here; start the same command again."
            )
        sizes = {part: int(info["size"]) for part, info in files.items()}
        (temporary / _SIZES).write_text(json.dumps(sizes))
        os.chmod(temporary, 0o755)
        os.rename(temporary, target)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_kept(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise FetchError where the cache has lost files since, as programs that tidy up old files do."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise FetchError(
                f"{path} in the cache is missing or was changed since it was brought; delete {folder.parent} and start "
                "the same command again, without --offline."
            )


def _sizes(state: Path) -> dict[str, int]:
    """Names and sizes of the files of a state, as they were brought; of copies of earlier versions nothing is known."""
    try:
        return {
            str(name): int(size)
            for name, size in json_text.parse_object((state / _SIZES).read_text()).items()
        }
    except (OSError, ValueError, TypeError):
        return {}


def _get(storage: Storage, names: list[str], here: list[Path]) -> None:
    try:
        storage.system.get([storage.path(name) for name in names], [str(path) for path in here])
    except OSError as error:
        if error.errno in _OF_THE_DISK:
            raise
        raise _cut_off(storage, error) from error
    except Exception as error:
        raise _cut_off(storage, error) from error


def _cut_off(storage: Storage, error: Exception) -> StorageError:
    return StorageError(
        f"{storage.url} could not be brought here ({first_line(error)}); start the same command again."
    )


def _check_whole(storage: Storage, name: str, path: Path, size: int) -> None:
    came = path.stat().st_size if path.is_file() else 0
    if came != size:
        raise StorageError(
            f"{storage.url}/{name} has {counted(came, 'byte')} here where {size} were listed: it was cut off, or "
            "changed meanwhile; start the same command again."
        )
