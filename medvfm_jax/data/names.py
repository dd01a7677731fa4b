"""Names and paths that come out of the files of a dataset: plain names, and nothing outside its folder.

A case name becomes the name of predictions, a path in ``dataset.json`` becomes a file that is read: whoever sends a
dataset must not choose which files of the reader are written or looked at.
"""

import os
from pathlib import Path

from medvfm_jax.data.records import BadDataset

LONGEST = 200  # bytes of a name: suffix and temporary prefix still fit into the 255 that file systems allow
_LONGEST_SHOWN = 60
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)),
}  # on Windows


class BadName(BadDataset):
    """A name that cannot be the name of a file everywhere."""


class OutsideFolder(BadDataset):
    """A path that leads out of the folder of the dataset."""


def check_name(name: str, where: Path | str) -> str:
    """The name, if it may become the name of a file; ``where`` it stands, for the message. Raises BadName."""
    wrong = _wrong(name)
    if wrong is None and any(c in "/\\" for c in name):
        wrong = "contains a path separator"
    if wrong is None and (name.startswith(".") or name.endswith((".", " "))):
        wrong = "begins or ends with a dot, or ends with a space"
    if wrong is None and name.split(".")[0].lower() in _DEVICES:
        wrong = "is the name of a device"
    if wrong is not None:
        raise BadName(
            f"{where} has a case named {shown(name)}, which {wrong}; a case is named like a file, without folders: "
            "rename it."
        )
    return name


def check_text(text: str, where: Path | str, what: str) -> str:
    """A label, patient or site: it may hold separators, but is shown and stored. Raises BadName."""
    wrong = _wrong(text)
    if wrong is not None:
        raise BadName(f"{where} has a {what} named {shown(text)}, which {wrong}; rename it.")
    return text


def check_site(name: str, where: Path | str) -> str:
    """The name of a site, under which a federation stores what the site keeps. Raises BadName."""
    check_text(name, where, "site")
    if name.startswith(".") or any(c in "/\\" for c in name):
        raise BadName(
            f"{where} has a site named {shown(name)}, which begins with a dot or contains a path separator; rename it."
        )
    return name


def _wrong(text: str) -> str | None:
    if not text.strip():
        return "is empty"
    if (
        not text.isprintable()
    ):  # control characters, line ends, what turns the direction of writing, half characters
        return "contains control characters"
    if len(text.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return None


def shown(name: object) -> str:
    """A name as a message can show it: quoted, control characters escaped, cut off."""
    text = str(name)
    text = text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return f"'{text}'" if len(text) <= _LONGEST_SHOWN else f"'{text[:_LONGEST_SHOWN]}...'"


def path_text(path: Path) -> str:
    """A path that comes out of a file as a message can show it."""
    return str(path) if str(path).isprintable() and len(str(path)) <= LONGEST else shown(path)


def check_inside(path: Path, folder: Path, follow_links: bool) -> Path:
    """The path, if it lies in the folder once all symbolic links are followed; raises OutsideFolder.

    The folder itself may be reached through links. follow_links: the user links on purpose, nothing is checked.
    """
    if follow_links:
        return path
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise OutsideFolder(
            f"{path_text(path)} leads out of {folder}; copy the file into the folder, or allow with --follow-links "
            "that files elsewhere are read."
        )
    return path


def file_of(folder: Path, name: str, ending: str) -> Path:
    """Where something about a case is stored. Raises BadName, whatever the dataset was made from."""
    return folder / f"{check_name(name, folder)}{ending}"
