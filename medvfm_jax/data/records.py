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

    Attributes:
        id: unique name within the dataset.
        patient: cases of one patient are never put into different splits.
        site: hospital, scanner or acquisition group.
        images: one file per channel, or one file with all channels.
        label: label map, None without a reference.
        instances: map of numbered objects, or None.
    """

    id: str
    patient: str
    site: str
    images: tuple[Path, ...]
    label: Path | None = None
    instances: Path | None = None


@dataclass(frozen=True, eq=False)  # by identity, so that what was read from it can be kept beside it
class Dataset:
    """A folder of cases with one set of labels.

    Attributes:
        name: for messages and records.
        folder: where the files are.
        url: where the folder was brought from; None: it was given itself.
        cases: at least one, with distinct ids.
        labels: class name -> class index 0..K in this order, background 0.
        ignore: value in the label files that is left out of every loss and score, or None.
        dimension: 2 for pictures, 3 for volumes.
        licence: as the folder declares it.
        channel_names: one name per channel; empty if none are declared.
        values: value in the label files of each class, in the order of ``labels``; default: the class indices.
        file_ending: of the images.
        note: one sentence about where the data come from.
        allow_geometry_mismatch: how far, in mm, the header of a label map may place a corner from where the image has
            it.
        objects: what one prompt is about: instances, connected components or whole labels, see ``data.objects``.
        findings: what was odd when the folder was opened (``data.findings.Finding``).
        alter: changes the array of each image as it is read, such as a simulated scanner shift of `partition`; None:
            no change.
        annotated: site -> names of the labels that it annotates, see ``data.annotated_labels``; a site that is not in
            it annotates everything.
        tasks: site -> number of its task, for models that know tasks, see ``data.site_tasks``; empty for others.
        preparation: resampling and cropping of volumes for a model of patches.
        notes: how the cases read so far deviated from the rules, such as rounded headers.
        by_id: the cases by id, filled in from ``cases``.
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
    url: str | None = None
    allow_geometry_mismatch: float = 0.0
    objects: Objects = "auto"
    findings: tuple[Any, ...] = ()
    alter: Callable[[Case, NDArray], NDArray] | None = None
    annotated: Mapping[str, frozenset[str]] = field(default_factory=dict)
    tasks: Mapping[str, int] = field(default_factory=dict)
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
    def source(self) -> str:
        """What opens it again: its URL, or the absolute path of its folder."""
        return self.url or str(self.folder.resolve())

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

    Attributes:
        case: which one.
        image: array (H, W, C) or (X, Y, Z, C), with its geometry.
        label: class index per pixel, (H, W) or (X, Y, Z) int32, IGNORE where unlabelled; None without a reference.
        instances: 1..n per object, 0 elsewhere, same shape; or None.
    """

    case: Case
    image: Image
    label: NDArray[np.int32] | None
    instances: NDArray[np.int32] | None
