"""Examples: whole pictures, volumes by slice, by slab of slices or by patch."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.objects import How, object_map, objects_of
from medvfm_jax.data.records import BadCase, Case, Dataset
from medvfm_jax.data.store import DecodedCase, store_of
from medvfm_jax.images import Frame, frame_of, pile, plane, preprocess
from medvfm_jax.images.tiles import side_by_side
from medvfm_jax.images.windows import cut, starts
from medvfm_jax.types import IGNORE, MedvfmError, ModelSpec

Task = Literal["semantic", "promptable"]


class NoExamples(MedvfmError, ValueError):
    """No picture or slice is left to train on."""


class NothingLeft(NoExamples):
    """None of the cases has anything that the model can be asked about."""


class Example(NamedTuple):
    """One picture, or a slice, a slab or a patch of a volume.

    Attributes:
        id: unique and stable: the case and, for volumes, "#" with the place.
        case: id of the case.
        index: of the slice, or of a slab's first slice, along ``axis``; None for pictures and patches.
        axis: of the volume that slices are perpendicular to; None for pictures.
        window: (D, H, W) of a slab or patch, voxels, with ``axis`` first; None for pictures and slices.
        corner: first voxel (d, h, w) of the window; None for a patch whose place is drawn anew at every load.  Of a
            model of tiles: first pixel (row, column) of one in the picture or slice, None for one drawn anew.
        objects: of a patch that is drawn anew: of which classes it holds a voxel every time, where prompts ask about
            them; empty: it may be anywhere, every second time around a labelled voxel.
    """

    id: str
    case: str
    index: int | None = None
    axis: int | None = None
    window: tuple[int, int, int] | None = None
    corner: tuple[int, ...] | None = None
    objects: tuple[int, ...] = ()


class LoadedExample(NamedTuple):
    """An example in memory, at its own size; what lies beyond the end of a volume is 0, IGNORE and 0.

    Attributes:
        image: (H, W, C); of a slab or patch (D, H, W, C).
        label: (H, W) or (D, H, W) int32, class index or IGNORE.
        instances: of the same shape, int32, 1..n per object and 0 elsewhere; or None.
        case: the case it belongs to.
    """

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
    random: bool = False,
) -> list[Example]:
    """The examples of these cases, in order; reads and checks every case.

    For a model of slices: each picture and slice.  For one of tiles: those that cover each picture or slice side by
    side.  For a model of slabs: a slab from each slice on, where an empty
    slab is treated as an empty slice.  For a model of patches: windows that cover each volume side by side.

    Args:
        dataset: the dataset.
        cases: ids of its cases.
        spec: input and output shapes of the model.
        task: "semantic": all of them, but see ``empty``; "promptable": those with an object that covers at least one
            pixel of the logits, and patches with one.
        empty: semantic: share (0 to 1, rounded up) of a case's slices without foreground that is kept, evenly spaced.
        labels: names of the classes that count as foreground; default all.
        skipped: if given, bad cases are left out and their messages put here, by id; otherwise the first one raises.
        random: patches at as many random places instead, or one tile anywhere in each picture, half of them around a
            labelled voxel.

    Returns:
        At least one example.

    Raises:
        BadCase: a case has no reference or cannot be read (unless ``skipped`` is given), or ``labels`` names an
            unknown class.
        BadDataset: the dataset has no such case.
        NoExamples: the model needs volumes, or objects, and the dataset has none.
        NothingLeft: none of the cases has anything that the model can be asked about.
    """
    if spec.rank == 3:
        check_volumes(dataset, spec.name, spec.input_shape[0])
    check_objects(dataset, spec)
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
        if spec.rank == 3 and spec.resize == "none":
            found += _patches(decoded, spec, random, None if task == "semantic" else wanted)
        else:
            listed = _of_case(decoded, spec, task, empty, wanted, how)
            found += listed if spec.tile is None or random else _tiles(decoded, spec.tile, listed)
    if not found:
        raise NothingLeft(
            f"No {'picture' if dataset.dimension == 2 else 'slice'} of {dataset.folder} is left to use"
            + (f" ({len(skipped)} bad cases skipped)." if skipped else "; check labels and masks.")
        )
    return found


def check_volumes(dataset: Dataset, model: str, slices: int) -> None:
    """Raise NoExamples where a model that sees so many slices at once is to learn from pictures."""
    if dataset.dimension == 2:
        raise NoExamples(
            f"{model} sees {slices} slices at once, and {dataset.folder} has pictures; choose data with volumes, or "
            "another model or adapter."
        )


def check_objects(dataset: Dataset, spec: ModelSpec) -> None:
    """Raise NoExamples where a model that tells objects apart is to learn from data without any."""
    if spec.distance_map and objects_of(dataset) == "labels":
        raise NoExamples(
            f"{dataset.folder} has no objects to tell apart: {spec.name} needs instance maps, or pictures whose "
            "connected pieces are objects (--objects components)."
        )


def load_example(dataset: Dataset, example: Example, rng: np.random.Generator | None = None) -> LoadedExample:
    """Read an example at its own size.

    Args:
        dataset: the dataset.
        example: one of its examples.
        rng: draws the corner of a patch that has none; default: not reproducible.

    Returns:
        Image, label map and instance map.

    Raises:
        BadCase: the case cannot be read.
        BadDataset: the dataset has no such case.
    """
    decoded = store_of(dataset)(example.case)
    arrays = (decoded.image, decoded.label, decoded.instances)
    if example.window is not None:
        piles = [None if a is None else pile(a, example.axis) for a in arrays]
        corner = example.corner
        if corner is None:
            rng = rng or np.random.default_rng()
            corner = random_corner(rng, piles[1], example.window, example.objects)
        arrays = tuple(
            None if a is None else cut(a, corner, example.window, fill)
            for a, fill in zip(piles, (0, IGNORE, 0))
        )
    elif example.index is not None:
        arrays = tuple(None if a is None else plane(a, example.axis, example.index) for a in arrays)
    image, label, instances = arrays
    return LoadedExample(
        image,
        np.asarray(label, np.int32),
        None if instances is None else np.asarray(instances, np.int32),
        decoded.case,
    )


def example_image(dataset: Dataset, example: Example, spec: ModelSpec) -> tuple[NDArray[np.float32], Frame]:
    """Model input of an example without augmentation, as embeddings of frozen encoders are cached for.

    Args:
        dataset: the dataset.
        example: one of its examples.
        spec: input and output shapes of the model.

    Returns:
        Input of shape ``spec.input_shape``, float32, and the Frame that maps between input and image.

    Raises:
        BadCase: the case cannot be read.
        BadDataset: the dataset has no such case.
    """
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
    name, axis, depth = decoded.case.id, decoded.axis, 1 if spec.rank == 2 else spec.input_shape[0]
    if axis is None:
        keep = (
            task == "semantic"
            or _largest(decoded.label, decoded.instances, wanted, how)
            >= frame_of(spec, *decoded.label.shape).least_object
        )
        return [Example(name, name)] if keep else []
    indices: Sequence[int] = range(decoded.label.shape[axis])
    sizes = [
        _largest(
            plane(decoded.label, axis, i),
            None if decoded.instances is None else plane(decoded.instances, axis, i),
            wanted,
            how,
        )
        for i in indices
    ]
    if spec.rank == 3:
        last = max(0, len(indices) - depth)
        sizes = [max(sizes[i : i + depth]) for i in range(last + 1)]
        indices = range(last + 1)
    if task == "promptable":
        least = frame_of(spec, *plane(decoded.label, axis, 0).shape).least_object
        chosen = [i for i in indices if sizes[i] >= least]
    else:
        without = [i for i in indices if sizes[i] == 0]
        kept = math.ceil(np.clip(empty, 0, 1) * len(without))
        spread = np.linspace(0, len(without) - 1, kept).round().astype(int) if kept else []
        chosen = sorted([i for i in indices if sizes[i] > 0] + [without[i] for i in spread])
    if spec.rank == 2:
        return [Example(f"{name}#{i:04d}", name, i, axis) for i in chosen]
    window = (depth, *pile(decoded.label, axis).shape[1:])
    return [Example(f"{name}#{i:04d}+{depth}", name, i, axis, window, (i, 0, 0)) for i in chosen]


def _tiles(decoded: DecodedCase, tile: int, listed: list[Example]) -> list[Example]:
    """Of each picture or slice its tiles side by side."""
    found = []
    for example in listed:
        label = decoded.label if example.index is None else plane(decoded.label, example.axis, example.index)
        for corner in side_by_side(label.shape, tile):
            place = ",".join(map(str, corner))
            found.append(example._replace(id=f"{example.id}#{place}", corner=corner))
    return found


def _patches(decoded: DecodedCase, spec: ModelSpec, random: bool, asked: NDArray | None) -> list[Example]:
    """Patches side by side, or as many at random places.

    asked: class indices of which a patch holds a voxel; None: none needed.
    """
    name, axis, window = decoded.case.id, decoded.axis, spec.input_shape[:3]
    label = pile(decoded.label, axis)
    corners = list(itertools.product(*(starts(n, w, 0.0) for n, w in zip(label.shape, window))))
    objects: tuple[int, ...] = ()
    if asked is not None:
        shown = np.isin(label, asked)
        corners = [at for at in corners if cut(shown, at, window, False).any()]
        objects = tuple(map(int, asked))
    if random:
        return [
            Example(f"{name}#any{i}", name, None, axis, window, None, objects) for i in range(len(corners))
        ]
    return [Example(f"{name}#{','.join(map(str, at))}", name, None, axis, window, at) for at in corners]


def random_corner(
    rng: np.random.Generator, label: NDArray, window: tuple[int, ...], objects: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """A window's first voxel in a label map (D, H, W): anywhere or, every second time, so that it holds a labelled one.

    Half and half is what UNETR was trained with.  The window lies inside the volume wherever it is smaller.
    objects: classes of which it holds a voxel every time.
    """
    last = [max(0, n - w) for n, w in zip(label.shape, window)]
    around = rng.integers(2) or bool(objects)
    foreground = np.flatnonzero(np.isin(label, objects) if objects else label > 0)
    corner = [int(rng.integers(n + 1)) for n in last]
    if around and len(foreground):
        voxel = np.unravel_index(foreground[rng.integers(len(foreground))], label.shape)
        corner = [int(rng.integers(max(0, v - w + 1), min(v, n) + 1)) for v, w, n in zip(voxel, window, last)]
    return tuple(corner)


def _largest(label: NDArray, instances: NDArray | None, wanted: NDArray, how: How) -> int:
    """Pixels of the largest object, see ``objects.object_map``."""
    counts = np.bincount(np.maximum(object_map(label, instances, wanted, how), 0).reshape(-1))
    return int(counts[1:].max(initial=0))
