"""Paths that a user gave: on a disk of this machine, with names that a file system can hold.

``gs://bucket/run`` would otherwise become a folder named ``gs:`` beside the program, and be lost with the machine.
Every command and every configuration record asks ``check``; whoever adds a path option has nothing to do for it.
"""

import dataclasses
import os
import re
from pathlib import Path, PurePath
from typing import Any

from medvfm_jax.types import MedvfmError

# Path("gs://a") is "gs:/a", and Path("gs://") is "gs:".
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):(?:/+(.*))?", re.DOTALL)
# One letter is a drive on Windows; elsewhere it would become a folder of that name beside the program.
_LETTER = re.compile(r"\s*([A-Za-z]):(?:/+(.*))", re.DOTALL)
_LOCAL = (
    "file",
    "hdfs",
)  # with a third slash more often than with a host: what was given cannot be told from a Path
URL = "url"  # in the metadata of a setting: it names storage elsewhere
DATA = "data"  # the setting that may be a folder here, the name of built-in data, or a URL
# A password after the user's name, "host:5000/a@b" is none; or a part of the query that is named like one.
_SECRET = re.compile(
    r"://[^/@:]*:(?!\d+/)[^@]+@|[?&;][^=&;]*(?:key|secret|token|passw|credential|sig)[^=&;]*=", re.IGNORECASE
)
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of all common file systems


class BadPath(MedvfmError, ValueError):
    """A path that does not name a place on a disk of this machine."""


def check(path: str | Path, what: str = "The path") -> None:
    """Refuse a path with a scheme, with a name no file system holds, or with a zero byte.  Raises BadPath.

    what: the beginning of the sentence, such as "--out".
    """
    text = str(path)
    found = _scheme(text)
    if found is not None:
        as_given = "://" in text or found[1].lower() in _LOCAL
        shown = text if as_given else f"{found[1]}://{found[2] or ''}"
        raise BadPath(
            f"{what} is {shown:.200}, and {found[1]}:// is not supported: give a path on a disk of "
            "this machine, such as a mounted bucket, and copy the files where they belong (`medvfm fetch` brings a run "
            "that --mirror copied)."
        )
    if "\0" in text:
        raise BadPath(f"{what} holds a zero byte, which no file system has in a name.")
    encoded = text.encode(errors="surrogateescape")
    if len(encoded) > _LONGEST_PATH or any(len(name) > _LONGEST_NAME for name in encoded.split(b"/")):
        raise BadPath(
            f"{what} is {text[:60]}..., longer than file systems allow ({_LONGEST_NAME} bytes a name, {_LONGEST_PATH} "
            "in all); choose a shorter one."
        )


def is_url(source: Any) -> bool:
    """Whether a source of data is a text such as ``gs://bucket/folder``."""
    return isinstance(source, str) and "://" in source


def check_source(source: str, what: str = "The source of data") -> None:
    """Refuse a URL with a password or a zero byte, and what ``check`` refuses of paths.  Raises BadPath."""
    if not is_url(source):
        check(source, what)
    elif "\0" in source:
        raise BadPath(f"{what} holds a zero byte, which no URL has.")
    else:
        _check_no_secret(source, what)


def _scheme(text: str) -> re.Match[str] | None:
    return _SCHEME.fullmatch(text) or (None if os.name == "nt" else _LETTER.fullmatch(text))


def check_all(settings: Any) -> None:
    """Check every path in a dataclass of settings: all its paths, and all its texts that are written like one with a
    scheme, since a folder of data may be given by name.  Settings marked ``URL``, and URLs of data, must hold no
    password.  Raises BadPath naming the setting.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.metadata.get(URL) or (field.name == DATA and is_url(value)):
            _check_no_secret(value, field.name)
            continue
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, PurePath) or (isinstance(part, str) and _scheme(part)):
                check(part, field.name.rstrip("_"))


def _check_no_secret(url: str | None, what: str) -> None:
    """The address is recorded with the run, shown, and part of the process list.  Raises BadPath without showing it."""
    if url is not None and _SECRET.search(url):
        raise BadPath(
            f"{what} holds a password or a key, which would be written into the settings of the run: leave it out of "
            "the address and put it where the package looks for it (AWS_SECRET_ACCESS_KEY or FSSPEC_SFTP_PASSWORD, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for MLflow)."
        )


def file_word(name: str) -> str:
    """A name out of a data set as one word of a file name: no separators, no leading dot, at most 100 characters.

    Letters, digits and ``-_. +`` stay; everything else becomes ``_``.
    """
    word = "".join(c if c.isalnum() or c in "-_. +" else "_" for c in name).lstrip(".")
    while len(word.encode()) > 100:
        word = word[:-1]
    return word or "_"
