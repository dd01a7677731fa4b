"""Folders among the images that `medvfm segment` is given: their images, and what else lies in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.images.reading import DICOM, SUFFIXES, suffix_of
from medvfm_jax.printable import counted


class Listed(NamedTuple):
    """images: files, and folders of one DICOM series.  folders: whose images are among them.

    skipped: {what was left out of a folder: why}.
    """

    images: list[Path]
    folders: list[Path]
    skipped: dict[Path, str]

    def lines(self) -> list[str]:
        """What was skipped, counted by the reason, with the first names."""
        lines = []
        for why in dict.fromkeys(self.skipped.values()):
            paths = [str(path) for path, reason in self.skipped.items() if reason == why]
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            lines.append(f"skipped {counted(len(paths), 'item')}, {why}: {', '.join(paths[:3])}{more}")
        return lines


def listed(paths: Sequence[Path], out: Path) -> Listed:
    """Replace each folder of images by its images, in the order of their names; a DICOM series stays a folder.

    A folder with at least one file whose name ends as an image's does is one of images.  Folders within it are not
    entered.  Raises BadUsage for an empty folder, and where masks would be written among the images.
    """
    found = Listed([], [], {})
    for path in paths:
        if not path.is_dir():
            found.images.append(path)
            continue
        entries = sorted(path.iterdir())
        if not entries:
            raise BadUsage(
                f"{path} is an empty folder; give image files, or a folder with images or a DICOM series"
            )
        reasons = {entry: _why_not(entry) for entry in entries}
        inside = [entry for entry, why in reasons.items() if not why]
        if not inside:  # the reader says what it is, if it is no DICOM series
            found.images.append(path)
            continue
        if out.resolve() == path.resolve():
            raise BadUsage(f"masks in {out} would lie among the images they are of; choose another --out")
        found.images.extend(inside)
        found.folders.append(path)
        found.skipped.update({entry: why for entry, why in reasons.items() if why})
    return found


def _why_not(entry: Path) -> str:
    """Why an entry of a folder is not taken for an image, "" if it is."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir():
        return "a folder within"
    if suffix_of(entry) in DICOM:
        return "DICOM beside other images"
    if suffix_of(entry) not in SUFFIXES:
        return "no image by its name"
    return ""
