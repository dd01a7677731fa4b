"""Everything that can be said about one case from its files alone, errors included."""

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.dataset import check_overlap, read_image, read_instances, read_label
from medvfm_jax.data.objects import pieces
from medvfm_jax.data.records import BadCase, Case, Dataset, GeometryMismatch, UnknownLabel, WrongChannels
from medvfm_jax.images import BadImage, Image, read_labels
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.reading import distinct_values
from medvfm_jax.types import IGNORE

_UNUSABLE = "unusable"  # a kind that begins so: a file could not be read
_KINDS = {GeometryMismatch: "geometry", UnknownLabel: "unknown label", WrongChannels: "channels"}


class Problem(NamedTuple):
    """Why a case cannot be used: a kind of ``findings.Finding``, and the sentence."""

    kind: str
    message: str


class Agreement(NamedTuple):
    """How an instance map and a label map of the same case differ; unlabelled pixels count for neither.

    outside: pixels of objects on the background. lost: objects wholly there. uncovered: pixels of a class that no
    object has. several: objects in more than one class.
    """

    outside: int
    lost: int
    uncovered: int
    several: int


class CaseFacts(NamedTuple):
    """What was found in a case; of an image or label map that cannot be read, nothing.

    grid: (H, W) or (X, Y, Z). spacing: mm, None if unknown. low, high: smallest and largest intensity. digest: of the
    pixels. pixels: per class index. unlabelled: pixels no score looks at. pieces: per foreground class, see
    ``objects.pieces``. instances: number of objects, None without a map. agreement: of them with the label map, None
    without both. notes: about how it was read, each with a
    displacement in mm where it is about one (``case_notes``).
    """

    problems: tuple[Problem, ...] = ()
    grid: tuple[int, ...] | None = None
    channels: int = 0
    type: str = ""
    spacing: tuple[float, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    digest: str = ""
    pixels: tuple[int, ...] = ()
    unlabelled: int = 0
    pieces: tuple[float, ...] = ()
    instances: int | None = None
    agreement: "Agreement | None" = None
    notes: tuple[tuple[str, float], ...] = ()

    @property
    def lasting(self) -> bool:
        """Whether the bytes of the files alone decide: a file that could not be read may be readable next time."""
        return not any(problem.kind.startswith(_UNUSABLE) for problem in self.problems)

    def record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return self._asdict() | {
            "agreement": None if self.agreement is None else list(self.agreement),
            "problems": [list(problem) for problem in self.problems],
            "notes": [list(note) for note in self.notes],
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> "CaseFacts":
        """Inverse of ``record``; raises TypeError or ValueError for anything else."""

        def numbers(name: str, kind: type) -> Any:
            return None if record[name] is None else tuple(map(kind, record[name]))

        return cls(
            tuple(Problem(str(kind), str(message)) for kind, message in record["problems"]),
            numbers("grid", int), int(record["channels"]), str(record["type"]), numbers("spacing", float),
            float(record["low"]), float(record["high"]), str(record["digest"]), numbers("pixels", int) or (),
            int(record["unlabelled"]), numbers("pieces", float) or (),
            None if record["instances"] is None else int(record["instances"]),
            None if record["agreement"] is None else Agreement(*map(int, record["agreement"])),
            tuple((str(note), float(displacement)) for note, displacement in record["notes"]),
        )  # fmt: skip


def inspect_case(dataset: Dataset, case: Case) -> CaseFacts:
    """Read a case as training does, and go on after a problem, so that all of them are named."""
    facts, problems = CaseFacts(), []

    def attempt(what: str, read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except (BadCase, BadImage) as error:
            problems.append(Problem(_KINDS.get(type(error), f"{_UNUSABLE} {what}"), str(error)))
            return None

    image: Image | None = attempt("image", read_image, dataset, case)
    if image is not None:
        facts = facts._replace(**_of_image(image))
    if case.label is not None and image is None:
        attempt("label map", read_labels, case.label)
    elif case.label is not None:
        label = attempt("label map", read_label, dataset, case, image)
        if label is not None:
            facts = facts._replace(**_of_label(dataset, label, image))
    if case.instances is not None and image is not None:
        numbers = attempt("instance map", read_instances, dataset, case, image)
        if numbers is not None:
            facts = facts._replace(instances=len(set(distinct_values(numbers)) - {0}))
            if case.label is None:
                facts = facts._replace(**_of_label(dataset, (numbers > 0).astype(np.int32), image))
            elif label is not None:
                attempt("instance map", check_overlap, case, label, numbers)
                facts = facts._replace(agreement=_agreement(dataset, label, numbers))
    if case.label is None and case.instances is None:
        message = (
            f"Case '{case.id}' in {dataset.folder} has no reference; it can be neither trained on nor scored."
        )
        problems.append(Problem("image without label", message))
    return facts._replace(problems=tuple(problems), notes=dataset.notes.of(case.id))


def _agreement(dataset: Dataset, label: NDArray[np.int32], numbers: NDArray[np.int32]) -> Agreement:
    objects = numbers > 0
    classes = [set(distinct_values(numbers[label == index])) - {0} for index in range(1, dataset.classes)]
    elsewhere = set(distinct_values(numbers[label != 0])) - {0}
    outside = objects & (label == 0)
    return Agreement(
        int(outside.sum()),
        len(set(distinct_values(numbers[outside])) - elsewhere),
        int(((label > 0) & ~objects).sum()),
        sum(count > 1 for count in Counter(number for found in classes for number in found).values()),
    )


def _of_image(image: Image) -> dict[str, Any]:
    array = np.ascontiguousarray(image.array)
    digest = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    digest.update(array.data.cast("B"))
    return {
        "grid": tuple(map(int, image.grid)), "channels": int(array.shape[-1]), "type": str(array.dtype),
        "spacing": None if image.spacing is None else tuple(map(float, image.spacing)),
        "low": float(array.min()), "high": float(array.max()), "digest": digest.hexdigest(),
    }  # fmt: skip


def _of_label(dataset: Dataset, label: NDArray[np.int32], image: Image) -> dict[str, Any]:
    counts = np.bincount((label - IGNORE).reshape(-1), minlength=dataset.classes + 1)
    axis = slice_axis(image) if image.is_volume else None
    return {
        "pixels": tuple(map(int, counts[1:])),
        "unlabelled": int(counts[0]),
        "pieces": tuple(pieces(label, dataset.classes, axis)),
    }
