"""Decoded cases kept in memory, up to a number of bytes, so that an epoch does not read every file again."""

import threading
import weakref
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.dataset import read_case
from medvfm_jax.data.records import Case, Dataset
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.intensity import volume_to_unit

LIMIT = 768 << 20  # bytes per dataset


class DecodedCase(NamedTuple):
    """A validated case as examples are cut from it.

    image: picture (H, W, C) in its own number type, or volume (X, Y, Z, C) float32 in 0..1, scaled over the
    whole volume. label, instances: small integers of the same spatial shape, or None. axis: along which the
    volume is cut, None for pictures. spacing: of the image's axes in mm, or None.
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
    image, axis = loaded.image.array, None
    if loaded.image.is_volume:
        image, axis = volume_to_unit(image, dataset.channel_names), slice_axis(loaded.image)
    return DecodedCase(
        loaded.case, image, _compact(loaded.label), _compact(loaded.instances), axis, loaded.image.spacing
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
