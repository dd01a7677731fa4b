"""What one prompt is about: an instance, a connected piece of a class, or everything of a class in a picture.

Without instance maps a class of many separate things (nuclei, lesions) has no useful single box: drawn around all of
them it is the whole picture.
"""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.findings import named
from medvfm_jax.data.records import BadDataset, Dataset

How = Literal["instances", "components", "labels"]
MANY_PIECES = 3.0  # pieces of a class in a picture, on average, above which one box around them says little


def objects_of(dataset: Dataset) -> How:
    """What ``dataset.objects`` stands for: "instances", "components" or "labels".

    "auto": instances if all cases have instance maps; without any, components (connected pieces of each class) for
    pictures and labels (one object per class and slice, as MedSAM was trained on scans) for volumes. Raises BadDataset
    for "instances" where maps are missing, and for "auto" if only some cases have one.
    """
    without = [case.id for case in dataset.cases if case.instances is None]
    if dataset.objects == "instances" or (
        dataset.objects == "auto" and 0 < len(without) < len(dataset.cases)
    ):
        if without:
            raise BadDataset(
                f"{len(without)} of {len(dataset.cases)} cases in {dataset.folder} have no instance map "
                f"({named(without)}); add them, or choose --objects components or --objects labels."
            )
        return "instances"
    if dataset.objects != "auto":
        return dataset.objects
    if not without:
        return "instances"
    return "components" if dataset.dimension == 2 else "labels"


def as_before(dataset: Dataset) -> Dataset:
    """The dataset with the objects of runs whose record has no word about them: instances, or labels without any."""
    some = any(case.instances is not None for case in dataset.cases)
    return dataclasses.replace(dataset, objects="instances" if some else "labels")


def object_map(label: NDArray, instances: NDArray | None, wanted: NDArray, how: How) -> NDArray[np.int32]:
    """(H, W) -> number of the object at each pixel, 0 for none; of classes (indices) in ``wanted`` alone.

    how: "instances" with the numbers of the instance map, "components" numbered from 1 over all classes, "labels" by
        class index.
    """
    if how == "instances":
        return np.where(np.isin(label, wanted), instances, 0)
    if how == "labels":
        return np.where(np.isin(label, wanted), label, 0)
    numbers, last = np.zeros(label.shape, np.int32), 0
    for value in wanted:
        pieces, count = components(label == value)
        numbers += np.where(pieces > 0, pieces + last, 0)
        last += count
    return numbers


def components(mask: NDArray[np.bool_], axis: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Mask -> connected pieces numbered from 1, and their number; pixels that touch at a corner belong together.

    axis: of a volume, slices along it are not connected.
    """
    structure = np.ones((3,) * mask.ndim, bool)
    if axis is not None:
        for end in (0, 2):
            structure[(slice(None),) * axis + (end,)] = False
    from scipy import ndimage  # takes a third of a second

    return ndimage.label(mask, structure, output=np.int32)


def pieces(label: NDArray, classes: int, axis: int | None) -> list[float]:
    """Per class 1..classes-1: pieces in a slice that has the class, on average; 0 if none has it.

    label: (H, W), or (X, Y, Z) that is cut along ``axis``.
    """
    found = []
    from scipy import ndimage

    boxes = ndimage.find_objects(np.maximum(label, 0), max_label=classes - 1)
    for value, box in enumerate(boxes, 1):
        if box is None:
            found.append(0.0)
            continue
        mask = label[box] == value
        slices = 1 if axis is None else int(mask.any(axis=tuple(a for a in range(3) if a != axis)).sum())
        found.append(components(mask, axis)[1] / slices)
    return found
