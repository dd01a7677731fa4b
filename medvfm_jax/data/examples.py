"""Two-dimensional examples: pictures as they are, volumes slice by slice."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.objects import How, object_map, objects_of
from medvfm_jax.data.records import BadCase, Case, Dataset
from medvfm_jax.data.store import DecodedCase, store_of
from medvfm_jax.images import Frame, frame_of, plane, preprocess
from medvfm_jax.types import MedvfmError, ModelSpec

Task = Literal["semantic", "promptable"]


class NoExamples(MedvfmError, ValueError):
    """No picture or slice is left to train on."""


class Example(NamedTuple):
    """One picture, or one slice of a volume. ``id`` is stable: the case, and "#" with the slice index."""

    id: str
    case: str
    index: int | None = None
    axis: int | None = None


class LoadedExample(NamedTuple):
    """image (H, W, C); label (H, W) int32 class index or IGNORE; instances (H, W) int32 or None; its case."""

    image: NDArray
    label: NDArray[np.int32]
    instances: NDArray[np.int32] | None
    case: Case


def examples(
    dataset: Dataset,
    cases: Iterable[str],
    spec: ModelSpec,
    task: Task,
    *,
    empty: float = 1.0,
    labels: Sequence[str] | None = None,
    skipped: dict[str, str] | None = None,
) -> list[Example]:
    """List the examples of these cases, in order; reads and checks every one of them.

    semantic: every picture and slice; of a case's slices without foreground the share ``empty`` (0..1, rounded up),
    evenly spaced. promptable: those with an object that covers at least one pixel of the model's logits.
    labels: names of the classes that count (default: all). skipped: if given, bad cases are left out and
    their messages put there; otherwise the first one raises BadCase. Raises NoExamples if nothing is left.
    """
    store, found = store_of(dataset), []
    wanted = _wanted(dataset, labels)
    how = objects_of(dataset) if task == "promptable" else "labels"
    for case_id in cases:
        try:
            decoded = store(case_id)
            if decoded.label is None:
                raise BadCase(
                    f"Case '{case_id}' in {dataset.folder} has no reference; it cannot be trained on."
                )
        except BadCase as error:
            if skipped is None:
                raise
            skipped[case_id] = str(error)
            continue
        found += _of_case(decoded, spec, task, empty, wanted, how)
    if not found:
        raise NoExamples(
            f"No {'picture' if dataset.dimension == 2 else 'slice'} of {dataset.folder} is left to use"
            + (f" ({len(skipped)} bad cases skipped)." if skipped else "; check labels and masks.")
        )
    return found


def load_example(dataset: Dataset, example: Example, spec: ModelSpec | None = None) -> LoadedExample:
    """Example -> picture, label map, instance map at their own size; see ``LoadedExample``."""
    del spec  # nothing depends on the model before preprocessing
    decoded = store_of(dataset)(example.case)
    arrays = (decoded.image, decoded.label, decoded.instances)
    if example.index is not None:
        arrays = tuple(None if a is None else plane(a, example.axis, example.index) for a in arrays)
    image, label, instances = arrays
    return LoadedExample(
        image,
        np.asarray(label, np.int32),
        None if instances is None else np.asarray(instances, np.int32),
        decoded.case,
    )


def example_image(dataset: Dataset, example: Example, spec: ModelSpec) -> tuple[NDArray[np.float32], Frame]:
    """Example -> model input (S, S, 3), Frame, without augmentation: what an embedding may be kept for."""
    return preprocess(spec, load_example(dataset, example).image)


def class_lookup(dataset: Dataset, labels: Sequence[str] | None) -> dict[str, int]:
    """Class name -> index in the model's output: all classes, or background and the named ones in order.

    Raises BadCase for unknown names.
    """
    if labels is None:
        return dict(dataset.labels)
    background = next(iter(dataset.labels))
    _wanted(dataset, labels)
    return {background: 0} | {name: i for i, name in enumerate(labels, 1)}


def _wanted(dataset: Dataset, labels: Sequence[str] | None) -> NDArray[np.int64]:
    """Class indices that count as foreground."""
    if labels is None:
        return np.array([v for v in dataset.labels.values() if v > 0])
    unknown = [name for name in labels if dataset.labels.get(name, 0) == 0]
    if unknown or not labels:
        raise BadCase(
            f"{dataset.folder} has no label '{unknown[0] if unknown else ''}'; "
            f"choose from {', '.join(n for n, v in dataset.labels.items() if v > 0)}."
        )
    return np.array([dataset.labels[name] for name in labels])


def _of_case(
    decoded: DecodedCase, spec: ModelSpec, task: Task, empty: float, wanted: NDArray, how: How
) -> list[Example]:
    name, axis = decoded.case.id, decoded.axis
    if axis is None:
        keep = (
            task == "semantic"
            or _largest(decoded.label, decoded.instances, wanted, how)
            >= frame_of(spec, *decoded.label.shape).least_object
        )
        return [Example(name, name)] if keep else []
    indices = range(decoded.label.shape[axis])
    sizes = [
        _largest(
            plane(decoded.label, axis, i),
            None if decoded.instances is None else plane(decoded.instances, axis, i),
            wanted,
            how,
        )
        for i in indices
    ]
    if task == "promptable":
        least = frame_of(spec, *plane(decoded.label, axis, 0).shape).least_object
        chosen = [i for i in indices if sizes[i] >= least]
    else:
        without = [i for i in indices if sizes[i] == 0]
        kept = math.ceil(np.clip(empty, 0, 1) * len(without))
        spread = np.linspace(0, len(without) - 1, kept).round().astype(int) if kept else []
        chosen = sorted([i for i in indices if sizes[i] > 0] + [without[i] for i in spread])
    return [Example(f"{name}#{i:04d}", name, i, axis) for i in chosen]


def _largest(label: NDArray, instances: NDArray | None, wanted: NDArray, how: How) -> int:
    """Pixels of the largest object, see ``objects.object_map``."""
    counts = np.bincount(np.maximum(object_map(label, instances, wanted, how), 0).reshape(-1))
    return int(counts[1:].max(initial=0))
