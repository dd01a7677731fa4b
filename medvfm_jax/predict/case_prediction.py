"""A whole case: predicted by slice, slab or patch, and put together on the case's own grid."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medvfm_jax.data import Dataset, LoadedCase, PromptConfig
from medvfm_jax.data.objects import object_map, objects_of
from medvfm_jax.data.targets import simulate, simulate_in_volume
from medvfm_jax.images import BadPrompt, pile, plane, stack
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.windows import OVERLAP
from medvfm_jax.predict.ensemble import EnsemblePredictor
from medvfm_jax.predict.predictor import Predictor, class_of_objects
from medvfm_jax.predict.volume_prediction import label_slices
from medvfm_jax.predict.volume_prompts import prompted_labels


class CasePrediction(NamedTuple):
    """labels: class indices on the case's grid; instances: object numbers, as in the reference where prompts
    are made of it, or None."""

    labels: NDArray[np.int32]
    instances: NDArray[np.int32] | None


class Pictures(Sequence[NDArray]):
    """Pictures (H, W, C) of a case: itself, or its slices with intensities scaled over the whole volume.

    A slice is cut and scaled when it is asked for.
    """

    def __init__(self, dataset: Dataset, case: LoadedCase):
        self._image = case.image
        if case.image.is_volume:
            self._axis = slice_axis(case.image)
            self._scale = dataset.preparation.scale(case.image.array, dataset.channel_names)

    def __len__(self) -> int:
        return self._image.grid[self._axis] if self._image.is_volume else 1

    def __getitem__(self, index: int) -> NDArray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if not self._image.is_volume:
            return self._image.array
        return self._scale(plane(self._image.array, self._axis, index))


def planes_of(case: LoadedCase, labels: NDArray) -> list[NDArray]:
    """A label map of a case, cut as ``Pictures`` cuts the image."""
    return list(pile(labels, slice_axis(case.image))) if case.image.is_volume else [labels]


def predict_case(
    predictor: Predictor | EnsemblePredictor,
    dataset: Dataset,
    case: LoadedCase,
    prompt: str,
    seed: int,
    overlap: float = OVERLAP,
) -> CasePrediction:
    """Predict a case. prompt: "none", or "box" or "point" made from the reference of each object and slice.

    What an object is says ``data.objects``: an instance, a connected piece of a class in the slice, or all of a class
    there; of overlapping masks the most probable one counts. Slices without reference objects get no prompt, and so no
    prediction. A model of patches is asked once about each object of the volume. overlap: of windows, where the model
    sees several slices at once.

    Raises BadPrompt for an object that is larger than the window of a model of patches that is asked with its box.
    """
    if prompt == "none":
        if not case.image.is_volume:
            if predictor.spec.distance_map:
                return CasePrediction(*predictor.instances(case.image.array))
            return CasePrediction(predictor.classes(case.image.array), None)
        spec = predictor.spec
        predict = predictor.classes if spec.rank == 2 else predictor.probabilities
        planes = label_slices(
            spec,
            case.image,
            dataset.channel_names,
            predict,
            overlap=overlap,
            preparation=dataset.preparation,
        )
        return CasePrediction(stack(planes, case.image), None)
    if case.image.is_volume and predictor.spec.rank == 3:
        return _asked_in_volume(predictor, dataset, case, prompt, seed)
    pictures = Pictures(dataset, case)
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
        classes.append(class_of_objects(objects, label)[map_])
    return CasePrediction(_stacked(classes, case), _stacked(found, case) if told_apart else None)


def _asked_in_volume(
    predictor: Predictor, dataset: Dataset, case: LoadedCase, prompt: str, seed: int
) -> CasePrediction:
    """One question about each object of the reference, see ``volume_prompts``."""
    wanted = np.array([value for value in dataset.labels.values() if value > 0])
    how, axis = objects_of(dataset), slice_axis(case.image)
    label = pile(case.label, axis)
    objects = object_map(label, None if case.instances is None else pile(case.instances, axis), wanted, how)
    rng = np.random.default_rng([seed, zlib.crc32(case.case.id.encode())])
    config = PromptConfig(prompt, jitter=0.0, centre=True)
    present = np.unique(objects[objects > 0])
    queries = [simulate_in_volume(rng, objects == number, config) for number in present]
    try:
        found = prompted_labels(
            predictor.spec,
            case.image,
            queries,
            dataset.channel_names,
            dataset.preparation,
            predictor.in_window,
        )
    except BadPrompt as error:
        raise BadPrompt(f"Case '{case.case.id}': {error}") from error
    numbers = np.concatenate([[0], present]).astype(np.int32)[pile(found, axis)]
    classes = class_of_objects(objects, label)[numbers]
    return CasePrediction(
        _stacked(list(classes), case), _stacked(list(numbers), case) if how == "instances" else None
    )


def _objects_in(
    predictor: Predictor, picture: NDArray, numbers: NDArray, config: PromptConfig, rng: np.random.Generator
) -> NDArray[np.int32]:
    where = ndimage.find_objects(numbers)
    present = [number for number, window in enumerate(where, 1) if window is not None]
    if not present:
        return np.zeros(picture.shape[:2], np.int32)
    queries = [simulate(rng, numbers, number, where[number - 1], config) for number in present]
    return predictor.label_map(picture, queries, present)


def _stacked(planes: list[NDArray], case: LoadedCase) -> NDArray[np.int32]:
    return stack(planes, case.image) if case.image.is_volume else planes[0]
