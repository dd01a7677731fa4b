"""Storage that a URL names (``gs://``, ``s3://``, ``memory://``), through fsspec."""

from typing import Any, NamedTuple

from medvfm_jax.fetch.cache import FetchError


class StorageError(FetchError):
    """Storage that is not known, not reached, or that does not hold what was asked for."""


class Storage(NamedTuple):
    """An fsspec file system and the folder below which everything lies."""

    system: Any
    root: str
    url: str

    def path(self, *parts: str) -> str:
        """Path of a file below the folder, as the file system names it."""
        return "/".join((self.root.rstrip("/"), *parts))


def open_storage(url: str) -> Storage:
    """The file system of a URL; nothing is asked of it yet.

    Raises:
        StorageError: fsspec or the package of this kind of storage is missing, or the kind is not known; a chain of
            URLs, which can lead from one storage into another, and which records of runs should not be able to ask for.
    """
    if "::" in url:
        raise StorageError(f"{url} names several file systems at once; give the URL of one.")
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise StorageError(f"{url} needs the package fsspec: pip install 'medvfm-jax[storage]'.") from error
    try:
        system, root = url_to_fs(url)
    except ImportError as error:
        raise StorageError(
            f"{url} needs another package ({first_line(error)}): pip install 'medvfm-jax[storage]' has those of "
            "gs:// and s3://."
        ) from error
    except Exception as error:
        known = ", ".join(
            f"{name}://" for name in ("gs", "s3", "file") if name in fsspec.available_protocols()
        )
        raise StorageError(
            f"{url} is not storage that can be reached ({first_line(error)}); give a URL such as {known}."
        ) from error
    return Storage(system, root, url)


def first_line(error: BaseException) -> str:
    """What an error of a file system says, in at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
