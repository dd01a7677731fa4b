"""Objects that were prompted on one slice of a volume, followed through the others by a model with memory."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import Image, Query, make_prompts, plane, preprocess, restore, stack
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.intensity import VolumeScale
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam2.root import tracker_of
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.types import Params


class Followed(NamedTuple):
    """What is found of Q objects in every slice.

    labels: object numbers on the image's own grid, 0 for none. iou, object_score (slices, Q): as the model gives them.
    """

    labels: NDArray
    iou: NDArray[np.float32]
    object_score: NDArray[np.float32]


class Propagator:
    """A model with memory, compiled once per number of prompts."""

    def __init__(self, model: Model, params: Params):
        tracker = tracker_of(model)
        self._spec, self._params = model.spec, params
        self._encode = jax.jit(model.encode)
        self._start = jax.jit(tracker.start, static_argnames="multimask")
        self._follow = jax.jit(tracker.follow, static_argnames="frames")

    def __call__(
        self,
        image: Image,
        queries: Sequence[Query],
        index: int,
        *,
        multimask: bool = False,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Followed:
        """Prompts on the slice ``index`` of a volume -> the objects in all slices.

        From that slice the objects are followed to the last one and, anew, to the first one. A single click is
        answered by the best of three masks, as in the release, and with ``multimask`` every prompt is.

        Args:
            image: a volume of one channel.
            queries: Q of them, in pixels of the slice.
            index: of the slice.
            multimask: see above.
            track: gives the numbers of slices back, to show progress.

        Returns:
            What is found.

        Raises:
            NotFinite: the model gives numbers that are not finite.
        """
        axis, scale = slice_axis(image), VolumeScale(image.array, ())
        count = image.grid[axis]
        found: dict[int, tuple[NDArray, ...]] = {}
        single = all(query.box is None and len(query.points) == 1 for query in queries)
        kind = np.min_scalar_type(len(queries))
        first = memories = None
        for i in track([*range(index, count), *reversed(range(index))]):
            prepared, frame = preprocess(self._spec, scale(plane(image.array, axis, i)))
            embedding = self._encode(self._params, prepared)
            if i == index:
                prompts = make_prompts(frame, queries)
                seen, first = self._start(self._params, embedding, prompts, multimask=multimask or single)
                memories = first
            else:
                known = first if i == index - 1 else memories
                seen, memories = self._follow(self._params, embedding, known, frames=count)
            logits = restore(frame, finite_logits(seen.logits, self._spec.name))
            labels = np.where(logits.max(0) > 0, 1 + logits.argmax(0), 0).astype(kind)
            found[i] = labels, np.asarray(seen.iou), np.asarray(seen.object_score)
        labels, iou, score = zip(*(found[i] for i in range(count)), strict=True)
        return Followed(stack(labels, image), np.stack(iou), np.stack(score))
