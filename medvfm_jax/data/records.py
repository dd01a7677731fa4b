"""What a dataset, a case and a split are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax import json_text
from medvfm_jax.data.case_notes import CaseNotes
from medvfm_jax.images import Image
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation
from medvfm_jax.types import MedvfmError

Objects = Literal["auto", "instances", "components", "labels"]


class BadDataset(MedvfmError, ValueError):
    """A folder that is no dataset, or whose files contradict each other."""


class BadCase(BadDataset):
    """One case that cannot be used; with ``--skip-bad`` it is left out and counted."""


class GeometryMismatch(BadCase):
    """A label map, or a further channel, that does not lie on the grid of the image."""


class WrongChannels(BadCase):
    """An image with another number of channels, or of time points, than the dataset declares."""


class UnknownLabel(BadCase):
    """A label map with values that the dataset does not declare."""


def whole_number(value: Any) -> int:
    """A label value as JSON gives it -> int; ValueError, a clause for a message, for anything but a whole number."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not np.isfinite(number) or int(value) != number:
        raise ValueError(f"{json_text.shown(value)} is no whole number")
    return int(value)


@dataclass(frozen=True)
class Case:
    """One picture or volume with its reference.

    patient: cases of one patient never come into different splits. site: hospital, scanner or
    acquisition group. images: one file per channel, or one file with all channels.
    """

    id: str
    patient: str
    site: str
    images: tuple[Path, ...]
    label: Path | None = None
    instances: Path | None = None


@dataclass(frozen=True, eq=False)  # by identity, so that what was read from it can be kept beside it
class Dataset:
    """A folder of cases that belong together.

    labels: class name -> class index, 0..K in this order, background 0. values: the number that stands for
    each class index in the label files. ignore: the number in the label files that no score looks at, or
    None. dimension: 2 for pictures, 3 for volumes. objects: what one prompt is about, see ``data.objects``.
    allow_geometry_mismatch: how far, in mm, the header of a label map may place a corner from where the image has
    it. notes: about how the cases read so far were read.
    findings: what was odd when the folder was opened (``data.findings.Finding``). alter: changes the array of each
    image as it is read, such as a scanner shift of `partition`; None for images as they are. preparation: of volumes
    for a model of patches.
    """

    name: str
    folder: Path
    cases: tuple[Case, ...]
    labels: Mapping[str, int]
    ignore: int | None = None
    dimension: int = 2
    licence: str = "unknown"
    channel_names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    file_ending: str = ".png"
    note: str = ""
    allow_geometry_mismatch: float = 0.0
    objects: Objects = "auto"
    findings: tuple[Any, ...] = ()
    alter: Callable[[Case, NDArray], NDArray] | None = None
    preparation: Preparation = AS_THEY_ARE
    notes: CaseNotes = field(default_factory=CaseNotes, repr=False)
    by_id: Mapping[str, Case] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the cases; raises BadDataset if there are none or two have the same name."""
        object.__setattr__(self, "by_id", {case.id: case for case in self.cases})
        if not self.cases:
            raise BadDataset(f"{self.folder} has no cases; expected at least one image with a label map.")
        if len(self.by_id) != len(self.cases):
            seen: set[str] = set()
            twice = next(c.id for c in self.cases if c.id in seen or seen.add(c.id))
            raise BadDataset(f"{self.folder} has two images for case '{twice}'; give them different names.")
        if not self.values:
            object.__setattr__(self, "values", tuple(self.labels.values()))

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labels)

    def case(self, case_id: str) -> Case:
        """The case of this name; raises BadDataset."""
        if case_id not in self.by_id:
            raise BadDataset(f"{self.folder} has no case '{case_id}'.")
        return self.by_id[case_id]


class LoadedCase(NamedTuple):
    """A case in memory, validated.

    image: (H, W, C) or (X, Y, Z, C), with geometry. label: class index per pixel, IGNORE where nothing is
    known, (H, W) or (X, Y, Z) int32, None if there is no reference. instances: 1..n per object, 0 between
    them, same shape, or None.
    """

    case: Case
    image: Image
    label: NDArray[np.int32] | None
    instances: NDArray[np.int32] | None
