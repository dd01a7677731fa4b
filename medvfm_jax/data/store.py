"""Decoded cases kept in memory, up to a number of bytes, so that an epoch does not read every file again."""

import threading
import weakref
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.annotated_labels import hidden, unannotated
from medvfm_jax.data.dataset import read_case
from medvfm_jax.data.records import BadCase, Case, Dataset, LoadedCase
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.image import BadImage
from medvfm_jax.images.intensity import volume_to_unit
from medvfm_jax.images.preparation import resampled, resampled_labels
from medvfm_jax.images.volumes import pile, unpile

LIMIT = 768 << 20  # bytes per dataset


class DecodedCase(NamedTuple):
    """A validated case as examples are cut from it.

    image: picture (H, W, C) in its own number type, or volume (X, Y, Z, C) float32 in 0..1, scaled over the
    whole volume. label, instances: small integers of the same spatial shape, or None. axis: along which the
    volume is cut, None for pictures. spacing: of the image's axes in mm, or None. The label is without the classes
    that the site of the case does not annotate.
    """

    case: Case
    image: NDArray
    label: NDArray | None
    instances: NDArray | None
    axis: int | None
    spacing: tuple[float, ...] | None

    @property
    def size(self) -> int:
        """Bytes of the arrays."""
        return sum(a.nbytes for a in (self.image, self.label, self.instances) if a is not None)


class CaseStore:
    """case name -> DecodedCase; keeps the most recently used ones. Safe for several threads."""

    def __init__(self, dataset: Dataset, limit: int = LIMIT):
        self._dataset, self._limit = weakref.ref(dataset), limit
        self._kept: OrderedDict[str, DecodedCase] = OrderedDict()
        self._used, self._lock = 0, threading.Lock()

    def __call__(self, case_id: str) -> DecodedCase:
        """Decode, or take from memory. Raises BadCase."""
        with self._lock:
            if case_id in self._kept:
                self._kept.move_to_end(case_id)
                return self._kept[case_id]
        decoded = _decode(self._dataset(), case_id)
        with self._lock:
            if case_id not in self._kept and decoded.size <= self._limit:
                self._kept[case_id] = decoded
                self._used += decoded.size
                while self._used > self._limit:
                    self._used -= self._kept.popitem(last=False)[1].size
        return decoded


_stores: "weakref.WeakKeyDictionary[Dataset, CaseStore]" = weakref.WeakKeyDictionary()


def store_of(dataset: Dataset) -> CaseStore:
    """The one store of a dataset; it goes when the dataset goes."""
    return _stores.setdefault(dataset, CaseStore(dataset))


def _decode(dataset: Dataset, case_id: str) -> DecodedCase:
    loaded = read_case(dataset, case_id)
    image, axis, spacing = loaded.image.array, None, loaded.image.spacing
    label = loaded.label
    if label is not None:
        label = hidden(label, unannotated(dataset, loaded.case))
    maps = (_compact(label), _compact(loaded.instances))
    if loaded.image.is_volume:
        scale = dataset.preparation.scale(image, dataset.channel_names)
        image, axis = volume_to_unit(image, scale=scale), slice_axis(loaded.image)
        if dataset.preparation.spacing is not None:
            image, maps = _resampled(dataset, loaded, image, maps, axis)
            spacing = None  # that of the run
    return DecodedCase(loaded.case, image, *maps, axis, spacing)


def _resampled(
    dataset: Dataset, loaded: LoadedCase, image: NDArray, maps: tuple[NDArray | None, ...], axis: int
) -> tuple[NDArray, tuple[NDArray | None, ...]]:
    """Volume and its maps with the voxels of the run, on their own axes."""
    piled = pile(image, axis)
    try:
        grid = dataset.preparation.grid(
            piled.shape[:3], loaded.image.spacing, axis, f"Case '{loaded.case.id}' in {dataset.folder}"
        )
    except BadImage as error:
        raise BadCase(str(error)) from error
    return unpile(resampled(piled, grid), axis), tuple(
        None if m is None else unpile(resampled_labels(pile(m, axis), grid), axis) for m in maps
    )


def _compact(labels: NDArray | None) -> NDArray | None:
    """The smallest signed type that holds the numbers (IGNORE is negative)."""
    if labels is None or labels.size == 0:
        return labels
    low, high = labels.min(), labels.max()
    kind = next(
        k for k in (np.int8, np.int16, np.int32) if np.iinfo(k).min <= low and high <= np.iinfo(k).max
    )
    return labels.astype(kind)
