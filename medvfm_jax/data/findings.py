"""What is odd about a dataset: errors, which stop the work, and notes, which are counted and said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medvfm_jax.data.names import shown
from medvfm_jax.data.records import BadDataset
from medvfm_jax.printable import counted

_NAMED = 3  # names in a message
_OWN_LOCK = ".lock"  # of `generate`, which leaves it in the folder that it has made


class Finding(NamedTuple):
    """kind: a few words, the same for all of its kind. message: one sentence. cases: names of those concerned."""

    kind: str
    severity: Literal["error", "note"]
    message: str
    cases: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON can hold it; of many names the first ones."""
        return {
            "kind": self.kind, "severity": self.severity, "message": self.message, "count": max(1, len(self.cases)),
            "cases": list(self.cases[:20]),
        }  # fmt: skip


class Findings:
    """Collects what is found while a dataset is opened. strict: the first error raises instead."""

    def __init__(self, *, strict: bool = True):
        self._strict, self._found = strict, []

    def error(self, kind: str, error: BadDataset, cases: Sequence[str] = ()) -> None:
        """Raise it if strict, else keep it; the caller goes on without what is wrong."""
        if self._strict:
            raise error
        self._found.append(Finding(kind, "error", str(error), tuple(cases)))

    def note(self, kind: str, message: str, cases: Sequence[str] = ()) -> None:
        """Keep something that the user should know and that stops nothing."""
        self._found.append(Finding(kind, "note", message, tuple(cases)))

    def __iter__(self):
        return iter(self._found)


def note_unused(folder: Path, names: Sequence[str], found: Findings) -> None:
    """Note files, and folders in a folder, that are not read."""
    if names:
        message = f"not used: {counted(len(names), 'file')} in {folder}: {named(names)}"
        found.note("unused files", message, names)


def note_hidden(folder: Path, found: Findings) -> None:
    """Note files and folders with a leading dot, in the folder of a dataset and in those of its images.

    Not the lock that `generate` leaves there.
    """
    read = (folder, *(folder / name for name in ("images", "masks", "instances", "imagesTr", "labelsTr")))
    names = sorted(
        path.relative_to(folder).as_posix()
        for part in read
        if part.is_dir()
        for path in part.iterdir()
        if path.name.startswith(".") and path != folder / _OWN_LOCK
    )
    if names:
        message = f"hidden files are not read: {counted(len(names), 'name')} with a leading dot in {folder}"
        found.note("hidden files", f"{message}: {named(names)}", names)


def named(names: Sequence[object]) -> str:
    """The first names for a message: "'a', 'b', 'c' and 7 more"."""
    text = ", ".join(map(shown, names[:_NAMED]))
    return text if len(names) <= _NAMED else f"{text} and {len(names) - _NAMED} more"
