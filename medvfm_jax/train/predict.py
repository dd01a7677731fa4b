"""Predictions on whole images at their own size; prompts and masks are in the pixels of the image."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from medvfm_jax.images import preprocess, restore, to_model_points
from medvfm_jax.train.assemble import Assembled
from medvfm_jax.types import Delta, Prompts

_CHUNK = 8  # prompts decoded at once; fewer are padded to a power of two, so that few programs are compiled
_NO_FLIP, _ALL_FLIPS = (((False, False)),), ((False, False), (True, False), (False, True), (True, True))


class Predictor:
    """Compiled once per kind of call; encodes one image at a time.

    flips: average the probabilities over the four flips (left-right, up-down) of the image.
    """

    def __init__(self, assembled: Assembled, delta: Delta, *, flips: bool = False):
        adapted = assembled.adapted
        self._spec = adapted.spec
        self._weights = (assembled.params, jax.device_put(delta))
        self._encode = jax.jit(adapted.encode)
        self._decode = jax.jit(
            lambda params, delta, embedding, prompts: adapted.decode(params, delta, embedding, prompts).logits
        )
        self._flips = _ALL_FLIPS if flips else _NO_FLIP

    def classes(self, image: NDArray) -> NDArray[np.int32]:
        """Image (H, W, C) -> class index (H, W) of a prompt-free model."""
        total: Any = 0.0
        for flip in self._flips:
            embedding, frame = self._embed(_flipped(image, flip))
            logits = np.asarray(self._decode(*self._weights, embedding, None))
            total = total + _flipped(softmax(restore(frame, logits), axis=0), flip, axes=(-1, -2))
        return total.argmax(0).astype(np.int32)

    def masks(self, image: NDArray, points: NDArray, labels: NDArray) -> Iterator[NDArray[np.float32]]:
        """Image (H, W, C), points (Q, P, 2) xy in its pixels, labels (Q, P) -> Q probabilities (H, W)."""
        height, width = image.shape[:2]
        embedded = [(flip, *self._embed(_flipped(image, flip))) for flip in self._flips]
        for start in range(0, len(points), _CHUNK):
            some, kinds = points[start : start + _CHUNK], labels[start : start + _CHUNK]
            total: Any = 0.0
            for flip, embedding, frame in embedded:
                moved = _flip_points(some, flip, width, height)
                prompts = _padded(to_model_points(frame, moved), kinds)
                logits = np.asarray(self._decode(*self._weights, embedding, prompts))[: len(some), 0]
                total = total + _flipped(expit(restore(frame, logits)), flip, axes=(-1, -2))
            yield from total / len(embedded)

    def label_map(
        self, image: NDArray, points: NDArray, labels: NDArray, values: Sequence[int]
    ) -> NDArray[np.int32]:
        """Q prompts as in ``masks``, Q values -> (H, W): the value of the most probable mask above 1/2, or 0."""
        best = np.full(image.shape[:2], 0.5, np.float32)
        chosen = np.zeros(image.shape[:2], np.int32)
        for value, probability in zip(values, self.masks(image, points, labels), strict=True):
            better = probability > best
            best[better], chosen[better] = probability[better], value
        return chosen

    def _embed(self, image: NDArray) -> tuple[Any, Any]:
        prepared, frame = preprocess(self._spec, image)
        return self._encode(*self._weights, prepared), frame


def _padded(points: NDArray, labels: NDArray) -> Prompts:
    """Repeat the last prompt up to a power of two; the surplus is cut off afterwards."""
    count = 1 << (len(points) - 1).bit_length()
    extra = [(0, count - len(points))]
    points = np.pad(points, [*extra, (0, 0), (0, 0)], mode="edge").astype(np.float32)
    return Prompts(points, np.pad(labels, [*extra, (0, 0)], mode="edge").astype(np.int32))


def _flipped(array: NDArray, flip: tuple[bool, bool], axes: tuple[int, int] = (1, 0)) -> NDArray:
    """Flip left-right and up-down; ``axes`` are those of x and y."""
    chosen = [axis for axis, wanted in zip(axes, flip, strict=True) if wanted]
    return np.flip(array, chosen) if chosen else array


def _flip_points(points: NDArray, flip: tuple[bool, bool], width: int, height: int) -> NDArray[np.float32]:
    """Points (Q, P, 2) of the flipped image."""
    moved = np.array(points, np.float32)
    for axis, (wanted, size) in enumerate(zip(flip, (width, height), strict=True)):
        if wanted:
            moved[..., axis] = size - moved[..., axis]
    return moved
