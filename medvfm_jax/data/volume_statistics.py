"""What the training volumes of a dataset have in common: size of their voxels, intensities of what is labelled."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from medvfm_jax.data.dataset import read_case
from medvfm_jax.data.records import BadCase, Dataset
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.preparation import slices_first

# Labelled voxels of a volume that count, evenly spread: many volumes matter more than many voxels.
_VOXELS = 10_000


class VolumeStatistics(NamedTuple):
    """Of what nnU-Net calls the fingerprint of a dataset the part that prepares volumes.

    spacing: median (depth, height, width) in mm, None if no volume has one.  ranges: of each channel the 0.5 and 99.5
    percentile of the labelled voxels.
    """

    spacing: tuple[float, float, float] | None
    ranges: tuple[tuple[float, float], ...]


def volume_statistics(dataset: Dataset, cases: Iterable[str]) -> VolumeStatistics:
    """Read these volumes and count.

    Raises BadCase for one without a reference, or if none of them has a labelled voxel.

    References:
        Isensee et al. 2021 (nnU-Net), supplementary note 2, https://doi.org/10.1038/s41592-020-01008-z
    """
    spacings, labelled = [], []
    for name in cases:
        loaded = read_case(dataset, name)
        if loaded.label is None:
            raise BadCase(f"Case '{name}' in {dataset.folder} has no reference; it cannot be trained on.")
        if loaded.image.spacing is not None:
            spacings.append(slices_first(loaded.image.spacing, slice_axis(loaded.image)))
        voxels = np.flatnonzero(loaded.label > 0)
        chosen = voxels[np.linspace(0, len(voxels) - 1, min(_VOXELS, len(voxels))).astype(int)]
        array = loaded.image.array
        labelled.append(array.reshape(-1, array.shape[-1])[chosen].astype(np.float64))
    values = np.concatenate(labelled) if labelled else np.empty((0, 1))
    if not len(values):
        raise BadCase(f"No training volume of {dataset.folder} has a labelled voxel; check its label maps.")
    low, high = np.percentile(values, [0.5, 99.5], axis=0)
    depth, height, width = np.median(spacings, axis=0).tolist() if spacings else (None,) * 3
    ranges = tuple((float(a), float(b)) for a, b in zip(low, high))
    return VolumeStatistics(None if depth is None else (depth, height, width), ranges)
