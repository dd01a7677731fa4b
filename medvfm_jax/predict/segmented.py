"""Masks of one picture or volume, and how a promptable model's answers become them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import Image, restore, stack
from medvfm_jax.images.frame import Frame
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.types import Prediction


class Segmented(NamedTuple):
    """Masks of one picture or volume.

    labels: class or object numbers (H, W) or (X, Y, Z) on the image's own grid, 0 for none.
    logits: (Q, M, H, W), or (C, H, W) without prompts, at the picture's own size; None without prompts for a volume
    or a picture seen in tiles. low_res_logits, iou: as the model gives them, (Q, M, h, w) and (Q, M).
    classes: (n + 1,), class index of each object number, of a model that tells objects apart without prompts.
    object_score: (Q,), above 0 where the model sees an object, of models that say so. Of objects followed through a
    volume it and iou are (slices, Q).
    """

    labels: NDArray[np.int32]
    logits: NDArray[np.float32] | None = None
    low_res_logits: NDArray[np.float32] | None = None
    iou: NDArray[np.float32] | None = None
    classes: NDArray[np.int32] | None = None
    object_score: NDArray[np.float32] | None = None


def of_objects(frame: Frame, low: Prediction, name: str) -> Segmented:
    """What a promptable model gives for the objects of a picture -> their masks on its own grid.

    frame: of the picture.  name: of the model, for BadLogits.
    """
    return numbered(low, restore(frame, finite_logits(low.logits, name)))


def numbered(low: Prediction, logits: NDArray[np.float32]) -> Segmented:
    """Of each object the mask that is rated best; a pixel belongs to the object with the largest logit above 0."""
    iou = np.asarray(low.iou)
    chosen = logits[np.arange(len(logits)), iou.argmax(1)]  # (Q, H, W)
    labels = np.where(chosen.max(0) > 0, 1 + chosen.argmax(0), 0).astype(np.int32)
    score = None if low.object_score is None else np.asarray(low.object_score)
    return Segmented(labels, logits, np.asarray(low.logits), iou, object_score=score)


def into(image: Image, labels: NDArray[np.int32], index: int | None) -> NDArray[np.int32]:
    """Labels of a picture, or of one slice of a volume -> on the grid of the image, 0 in all other slices."""
    if not image.is_volume:
        return labels
    planes = [np.zeros_like(labels)] * image.grid[slice_axis(image)]
    planes[index] = labels
    return stack(planes, image)
