"""The copy of a run on storage that a URL names: where its files lie there, and the manifest that says which they are.

Below the URL ``files/DIGEST/NAME`` holds what files of the run held, and ``manifest.json``, written last, which of them
are the run: name, size and sha256.  A file is never changed once it is named there, so whoever reads the manifest finds
a whole run, that of the last copy which came to its end.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from medvfm_jax import json_text
from medvfm_jax.fetch.storage import Storage, StorageError, first_line, open_storage
from medvfm_jax.runs import run_directory

FORMAT = 1
MANIFEST, FILES = "manifest.json", "files"


class MirrorError(run_directory.RunError):
    """The copy of a run cannot be reached, is not whole, or belongs to another run."""


class Stored(NamedTuple):
    """A file of the run as it is stored: its digest and its size in bytes."""

    sha256: str
    size: int


class RunStorage(Storage):
    """Where the copy of a run lies."""

    def of(self, name: str, stored: Stored) -> str:
        """Path of a file of the run on the storage."""
        return self.path(FILES, stored.sha256[:32], name)


def open_copy(url: str) -> RunStorage:
    """The storage that a URL names; nothing is read yet.  Raises MirrorError for an address that cannot be opened."""
    try:
        return RunStorage(*open_storage(url))
    except StorageError as error:
        raise MirrorError(str(error)) from error


def read_manifest(storage: RunStorage) -> dict[str, Stored] | None:
    """What the copy consists of, None where there is none.  Raises MirrorError."""
    try:
        content = storage.system.cat_file(storage.path(MANIFEST))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise MirrorError(
            f"{storage.url} cannot be read ({first_line(error)}); check the address, your permission and the network."
        ) from error
    try:
        record = json_text.parse_object(content)
        body = record["content"]
        if record["digest"] != digest_of(body) or body["format"] != FORMAT:
            raise ValueError("its digest or format is another")
        files = {str(n): Stored(str(f["sha256"]), int(f["bytes"])) for n, f in body["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MirrorError(
            f"{storage.url}/{MANIFEST} is not what a run writes ({first_line(error)}); give a folder of its own as "
            "--mirror, or remove what is there."
        ) from error
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(part.startswith(".") for part in parts):
            raise MirrorError(f"{storage.url}/{MANIFEST} names a file outside the run: {name!r:.80}.")
    return files


def stored_as(path: Path) -> Stored:
    """What a manifest says of a file."""
    with open(path, "rb") as file:
        return Stored(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def digest_of(body: Any) -> str:
    """Of a manifest without its own digest."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def refuse_inside(url: str, folder: Path) -> None:
    """Raise MirrorError if the copy would lie in the run directory, each copy holding those before, or around it."""
    storage = open_copy(url)
    protocol = storage.system.protocol
    if "file" not in ((protocol,) if isinstance(protocol, str) else protocol):
        return
    there, here = Path(storage.root).resolve(), folder.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there / FILES):
        raise MirrorError(f"{url} and {folder} lie in each other; choose one outside of the other.")
