"""Labelled points of pictures, the same for every encoder, and the features that an encoder has there."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.frame import Frame
from medvfm_jax.theory.runs.pictures import Sample, spread


class Points(NamedTuple):
    """Labelled pixels.

    Attributes:
        places: (n, 2) row and column of each, in its picture.
        classes: (n,).
        pictures: (n,) number of the picture of each.
        patients: (n,) number of the patient of each.
    """

    places: NDArray[np.int64]
    classes: NDArray[np.int64]
    pictures: NDArray[np.int64]
    patients: NDArray[np.int64]


def labelled_points(sample: Sample, each: int) -> Points:
    """Of every picture at most ``each`` pixels of each class that it shows, evenly in reading order."""
    names = [sample.dataset.case(case).patient for case in sample.cases]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    found = [
        (*place, value, number, numbers[names[number]])
        for number, label in enumerate(sample.labels)
        for value in np.unique(label[label >= 0])
        for place in spread(np.argwhere(label == value), each)
    ]
    table = np.array(found, np.int64).reshape(-1, 5)
    return Points(table[:, :2], *table[:, 2:].T)


def features_at(
    encoder: Callable[[NDArray], tuple[NDArray, Frame]], sample: Sample, points: Points
) -> NDArray[np.float64]:
    """Features of every point (n, c), interpolated between the places of the encoder's grid."""
    found = []
    for number, picture in enumerate(sample.pictures):
        features, frame = encoder(picture)
        found.append(_interpolated(features, _on_grid(frame, points.places[points.pictures == number])))
    return np.concatenate(found).astype(np.float64)


def _on_grid(frame: Frame, places: NDArray) -> NDArray:
    """Pixels of a picture -> coordinates on the grid, whose first place has its middle at 0."""
    scale = np.array(frame.scaled) / frame.original * np.array(frame.logits_shape) / frame.input_shape
    return np.clip((places + 0.5) * scale - 0.5, 0, np.array(frame.logits_shape) - 1)


def _interpolated(features: NDArray, at: NDArray) -> NDArray:
    """Bilinearly."""
    low = np.minimum(at.astype(int), np.array(features.shape[:2]) - 1)
    high = np.minimum(low + 1, np.array(features.shape[:2]) - 1)
    (y, x), total = (at - low).T[..., None], 0.0
    for rows, up in ((low[:, 0], 1 - y), (high[:, 0], y)):
        for columns, along in ((low[:, 1], 1 - x), (high[:, 1], x)):
            total = total + up * along * features[rows, columns]
    return total
