"""A whole case: every slice predicted and stacked back onto the case's own grid."""

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.data import Dataset, LoadedCase, PromptConfig
from medvfm_jax.data.objects import object_map, objects_of
from medvfm_jax.data.targets import simulate
from medvfm_jax.images import plane, slices, stack
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.intensity import volume_to_unit
from medvfm_jax.train.predict import Predictor


class CasePrediction(NamedTuple):
    """labels: class indices on the case's grid; instances: object numbers as in the reference, or None."""

    labels: NDArray[np.int32]
    instances: NDArray[np.int32] | None


def pictures_of(dataset: Dataset, case: LoadedCase) -> list[NDArray]:
    """Pictures (H, W, C) of a case: itself, or its slices with intensities scaled over the whole volume."""
    if not case.image.is_volume:
        return [case.image.array]
    scaled = case.image._replace(array=volume_to_unit(case.image.array, dataset.channel_names))
    return list(slices(scaled))


def planes_of(case: LoadedCase, labels: NDArray) -> list[NDArray]:
    """A label map of a case, cut as ``pictures_of`` cuts the image."""
    if not case.image.is_volume:
        return [labels]
    axis = slice_axis(case.image)
    return [plane(labels, axis, index) for index in range(case.image.grid[axis])]


def predict_case(
    predictor: Predictor, dataset: Dataset, case: LoadedCase, prompt: str, seed: int
) -> CasePrediction:
    """Predict every slice. prompt: "none", or "box" or "point" made from the reference of each object.

    What an object is says ``data.objects``: an instance, a connected piece of a class in the slice, or all of a class
    there; of overlapping masks the most probable one counts. Slices without reference objects get no prompt, and so no
    prediction.
    """
    pictures = pictures_of(dataset, case)
    if prompt == "none":
        return CasePrediction(_stacked([predictor.classes(p) for p in pictures], case), None)
    wanted = np.array([value for value in dataset.labels.values() if value > 0])
    config = PromptConfig(prompt, jitter=0.0, centre=True)
    rng = np.random.default_rng([seed, zlib.crc32(case.case.id.encode())])
    how = objects_of(dataset)
    told_apart = how == "instances"
    references = planes_of(case, case.label)
    numbered = planes_of(case, case.instances) if told_apart else [None] * len(references)
    found, classes = [], []
    for picture, label, numbers in zip(pictures, references, numbered, strict=True):
        objects = object_map(label, numbers, wanted, how)
        map_ = _objects_in(predictor, picture, objects, config, rng)
        found.append(map_)
        classes.append(_class_of(objects, label)[map_])
    return CasePrediction(_stacked(classes, case), _stacked(found, case) if told_apart else None)


def _objects_in(
    predictor: Predictor, picture: NDArray, numbers: NDArray, config: PromptConfig, rng: np.random.Generator
) -> NDArray[np.int32]:
    where = ndimage.find_objects(numbers)
    present = [number for number, window in enumerate(where, 1) if window is not None]
    if not present:
        return np.zeros(picture.shape[:2], np.int32)
    queries = [simulate(rng, numbers, number, where[number - 1], config) for number in present]
    return predictor.label_map(picture, queries, present)


def _class_of(numbers: NDArray, label: NDArray) -> NDArray[np.int32]:
    """(n + 1,): class of each object number, the most frequent one among its pixels; 0 for number 0."""
    most = int(label.max(initial=0)) + 1
    inside = numbers > 0
    pairs = numbers[inside].astype(np.int64) * most + np.maximum(label[inside], 0)
    counts = np.bincount(pairs, minlength=(int(numbers.max(initial=0)) + 1) * most).reshape(-1, most)
    classes = counts.argmax(1).astype(np.int32)
    classes[0] = 0
    return classes


def _stacked(planes: list[NDArray], case: LoadedCase) -> NDArray[np.int32]:
    return stack(planes, case.image) if case.image.is_volume else planes[0]
