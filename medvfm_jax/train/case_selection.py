"""Which cases to train on, by the mean features of a frozen encoder; labels are never looked at."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import Dataset, read_case
from medvfm_jax.images import plane
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.intensity import VolumeScale

_SLICES = 5  # of a volume, that its mean is made of


def mean_features(
    dataset: Dataset,
    cases: Sequence[str],
    patients: Iterable[str],
    encode: Callable[[NDArray], NDArray],
) -> NDArray[np.float32]:
    """A vector of each patient: the mean of ``encode`` over the pictures of the patient's cases.

    Args:
        dataset: that has the cases.
        cases: names; those of the patients.
        patients: in the order of the rows.
        encode: picture (H, W, C) -> (c,). Of a volume it sees five slices, evenly spaced.

    Returns:
        (patients, c).
    """
    own: dict[str, list[str]] = {}
    for case in cases:
        own.setdefault(dataset.case(case).patient, []).append(case)
    return np.stack(
        [
            np.mean(
                [encode(picture) for case in own[patient] for picture in _pictures(dataset, case)], axis=0
            )
            for patient in patients
        ]
    )


def _pictures(dataset: Dataset, name: str) -> list[NDArray]:
    image = read_case(dataset, name).image
    if not image.is_volume:
        return [image.array]
    axis, scale = slice_axis(image), VolumeScale(image.array, dataset.channel_names)
    last = image.grid[axis] - 1
    where = np.linspace(0.1 * last, 0.9 * last, min(_SLICES, last + 1)).round().astype(int)
    return [scale(plane(image.array, axis, int(i))) for i in where]
