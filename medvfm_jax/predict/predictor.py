"""Predictions on whole pictures at their own size; prompts and masks are in the pixels of the picture."""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import Query, flip_prompts, make_prompts, objects_from_distance, preprocess, restore
from medvfm_jax.images.frame import Limits
from medvfm_jax.images.tiles import tiled
from medvfm_jax.images.windows import OVERLAP
from medvfm_jax.types import (
    ABSENT,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    Delta,
    MedvfmError,
    ModelSpec,
    Params,
    Prediction,
    Prompts,
)

if TYPE_CHECKING:
    from medvfm_jax.adapters import AdaptedModel  # imports flax
    from medvfm_jax.export.frozen_encoder import FrozenEncoder

_CHUNK = 8  # prompts decoded at once; fewer are padded to a power of two, so that few programs are compiled
_NO_FLIP, _ALL_FLIPS = ((False, False),), ((False, False), (True, False), (False, True), (True, True))
_CORNERS = np.array([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT])

Flip = tuple[bool, bool]  # left-right, up-down


class NotFinite(MedvfmError):
    """A model gives numbers that are not finite, of which no mask can be made."""


DAMAGED = (
    "its weights or delta are damaged or the training diverged: use others, or lower the learning rate and "
    "train again"
)


def finite_logits(logits: Any, model: str, advice: str = DAMAGED) -> NDArray[np.float32]:
    """Logits as numpy; raises NotFinite: a mask made of NaN is empty, which reads as "nothing found".

    advice: why that is so, and what to do.
    """
    logits = np.asarray(logits)
    if not np.isfinite(logits).all():
        raise NotFinite(f"{model} gives numbers that are not finite for this picture; {advice}.")
    return logits


def classes_of(spec: ModelSpec) -> slice:
    """Which channels of the logits of a prompt-free model are classes: all but a distance map."""
    return slice(None, -1 if spec.distance_map else None)


def probabilities_of(spec: ModelSpec, logits: NDArray) -> NDArray[np.float32]:
    """Logits of a prompt-free model, channels first -> probabilities of the classes, and the distance it may have."""
    from scipy import special  # takes a third of a second, which `segment` need not wait for

    found = special.softmax(logits[classes_of(spec)], axis=0)
    return np.concatenate([found, special.expit(logits[-1:])]) if spec.distance_map else found


def told_apart(classes: NDArray, distance: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Scores of the classes (C, H, W) and distance (H, W) -> class index and object number of each pixel, (H, W).

    Of the classes within an object the most frequent one is its class; background is 0 in both.
    """
    labels = classes.argmax(0).astype(np.int32)
    objects = objects_from_distance(labels > 0, distance)
    return class_of_objects(objects, labels)[objects], objects


def class_of_objects(objects: NDArray, labels: NDArray) -> NDArray[np.int32]:
    """(n + 1,): class of each object number, the most frequent one among its pixels; 0 for number 0."""
    most = int(labels.max(initial=0)) + 1
    inside = objects > 0
    pairs = objects[inside].astype(np.int64) * most + np.maximum(labels[inside], 0)
    counts = np.bincount(pairs, minlength=(int(objects.max(initial=0)) + 1) * most).reshape(-1, most)
    classes = counts.argmax(1).astype(np.int32)
    classes[0] = 0
    return classes


class Predictor:
    """A model with its delta, compiled once for each number of prompts.

    flips: average the probabilities over the four flips (left-right, up-down) of the picture.
    overlap: share of a tile that the next one covers too, of models that see pictures in tiles.
    encoder: encodes outside JAX.
    """

    def __init__(
        self,
        adapted: "AdaptedModel",
        params: Params,
        delta: Delta,
        *,
        flips: bool = False,
        overlap: float = OVERLAP,
        encoder: "FrozenEncoder | None" = None,
    ):
        self._spec, self._weights = adapted.spec, (params, jax.device_put(delta))
        self._encode = jax.jit(adapted.encode)
        self._decode = jax.jit(lambda *inputs: adapted.decode(*inputs).logits)
        self._rated = jax.jit(lambda *inputs: adapted.decode(*inputs)[:2])
        self._flips: tuple[Flip, ...] = _ALL_FLIPS if flips else _NO_FLIP
        self._overlap, self._encoder = overlap, encoder

    def with_delta(self, delta: Delta) -> "Predictor":
        """The same model with another delta of the same shapes; nothing is compiled again.

        Raises ValueError where the present delta is folded into an encoder outside JAX.
        """
        if self._encoder is not None and self._encoder.adapted:
            raise ValueError("the encoder outside JAX holds the delta that is to be replaced")
        other = copy.copy(self)
        other._weights = (self._weights[0], jax.device_put(delta))
        return other

    def in_jax(self) -> "Predictor":
        """The same model and delta, encoded by JAX."""
        other = copy.copy(self)
        other._encoder = None
        return other

    def for_task(self, task: int) -> "Predictor":
        """The same model for one of the tasks that its delta knows, see ``adapters.task_tables``."""
        from medvfm_jax.adapters.task_tables import of_task  # imports flax

        return self.with_delta(of_task(self._weights[1], task))

    @property
    def semantic(self) -> bool:
        """Whether the model needs no prompts."""
        return self._spec.task == "semantic"

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._spec

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W) of a prompt-free model."""
        return self._summed(picture)[classes_of(self._spec)].argmax(0).astype(np.int32)

    def instances(self, picture: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Picture (H, W, C) -> (class index, object number) of a model with a distance map, each (H, W)."""
        *classes, distance = self._summed(picture)
        return told_apart(np.stack(classes), distance / len(self._flips))

    def probabilities(self, window: NDArray) -> NDArray[np.float32]:
        """Picture (H, W, C), or slab or patch (D, H, W, C) -> probability of each class, classes first."""
        return self._summed(window) / len(self._flips)

    def _summed(self, picture: NDArray) -> NDArray[np.float32]:
        """Probabilities of the classes, and the distance of a model with one, summed over the flips."""
        if self._spec.tile is None:
            return self._seen(picture)
        return tiled(self._spec, picture, self._overlap, self._seen)

    def _seen(self, picture: NDArray, limits: Limits | None = None) -> NDArray[np.float32]:
        """The same of what the model sees at once; limits: see ``preprocess``."""
        total: Any = 0.0
        for flip in self._flips:
            embedding, frame = self._embed(_flipped(picture, flip, (-2, -3)), limits)
            logits = finite_logits(self._decode(*self._weights, embedding, None), self._spec.name)
            total = total + _flipped(probabilities_of(self._spec, restore(frame, logits)), flip, (-1, -2))
        return total

    def masks(self, picture: NDArray, queries: Sequence[Query]) -> Iterator[NDArray[np.float32]]:
        """Picture (H, W, C), Q queries in its pixels -> Q probabilities (H, W), in order."""
        from scipy import special

        shape = picture.shape[:2]
        embedded = [(flip, *self._embed(_flipped(picture, flip, (1, 0)))) for flip in self._flips]
        slots = max((query.slots for query in queries), default=2)
        for start in range(0, len(queries), _CHUNK):
            some = queries[start : start + _CHUNK]
            total: Any = 0.0
            for flip, embedding, frame in embedded:
                moved = [_flip_query(query, shape, flip) for query in some]
                prompts = _padded(make_prompts(frame, moved, slots=slots))
                logits = np.asarray(self._decode(*self._weights, embedding, prompts))[: len(some), 0]
                logits = finite_logits(logits, self._spec.name)
                total = total + _flipped(special.expit(restore(frame, logits)), flip, (2, 1))
            yield from total / len(embedded)

    def in_window(self, patch: NDArray, prompts: dict[str, NDArray]) -> Prediction:
        """Window (D, H, W, C) as the model sees it, points (1, P, 3) and labels (1, P) in its voxels -> its masks."""
        embedding = self._encode(*self._weights, patch)
        logits, iou = self._rated(
            *self._weights, embedding, Prompts(prompts["points"], prompts["labels"], None)
        )
        return Prediction(finite_logits(logits, self._spec.name), iou)

    def label_map(
        self, picture: NDArray, queries: Sequence[Query], values: Sequence[int]
    ) -> NDArray[np.int32]:
        """Q queries and Q values -> (H, W): the value of the most probable mask above 1/2, or 0."""
        best = np.full(picture.shape[:2], 0.5, np.float32)
        chosen = np.zeros(picture.shape[:2], np.int32)
        for value, probability in zip(values, self.masks(picture, queries), strict=True):
            better = probability > best
            best[better], chosen[better] = probability[better], value
        return chosen

    def _embed(self, picture: NDArray, limits: Limits | None = None) -> tuple[Any, Any]:
        prepared, frame = preprocess(self._spec, picture, limits)
        if self._encoder is not None:
            return self._encoder.encode(prepared), frame
        return self._encode(*self._weights, prepared), frame


def _padded(prompts: Prompts) -> Prompts:
    """Add absent prompts up to a power of two; their masks are cut off afterwards."""
    missing = (1 << (len(prompts.points) - 1).bit_length()) - len(prompts.points)
    points = np.pad(prompts.points, [(0, missing), (0, 0), (0, 0)])
    return Prompts(points, np.pad(prompts.labels, [(0, missing), (0, 0)], constant_values=ABSENT))


def _flipped(array: NDArray, flip: Flip, axes: tuple[int, int]) -> NDArray:
    """Flip along the axes of x and of y."""
    chosen = [axis for axis, wanted in zip(axes, flip, strict=True) if wanted]
    return np.flip(array, chosen) if chosen else array


def _flip_query(query: Query, shape: tuple[int, int], flip: Flip) -> Query:
    """The same question about the flipped picture."""
    horizontal, vertical = flip
    box, points = query.box, query.points
    if box is not None:
        corners = np.reshape(box, (2, 2))
        box = flip_prompts(corners, _CORNERS, shape, horizontal=horizontal, vertical=vertical).reshape(4)
    if len(points):
        points = flip_prompts(points, query.labels, shape, horizontal=horizontal, vertical=vertical)
    return Query(box, points, query.labels)
