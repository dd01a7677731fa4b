"""A SAM asked in steps about one object: a first mask, then its box and its logits as the next prompt."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import Query, make_prompts, restore
from medvfm_jax.images.frame import Frame
from medvfm_jax.images.prompts import box_of
from medvfm_jax.models.sam.guidance import Guidance, guided_decode
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import Base
from medvfm_jax.types import Prediction, Prompts

_SLOTS = 4  # two points and a box


class Asked(NamedTuple):
    """Logits of the best mask: on the picture (H, W), and as the decoder gives them (h, w)."""

    picture: NDArray[np.float32]
    low: NDArray[np.float32]


class Cascade:
    """PerSAM's three steps, or two with boxes for weights that were trained with boxes alone.

    With points: a guided first mask; then the same points with its logits, the best of three; then its box too. With a
    box: a guided first mask of the box; then the box of that mask. Interpretation: the latter, because such weights
    answer neither points nor logits of masks.

    References:
        Zhang et al. 2023, PerSAM, https://arxiv.org/abs/2305.03048, "cascaded post-refinement"; steps as in persam.py.
    """

    def __init__(self, base: Base):
        """base: a promptable model of the SAM family; raises NotGuided, BadConfig."""
        guided = guided_decode(base.model)
        self.points = "point" in base.model.spec.prompts
        if not self.points and "box" not in base.model.spec.prompts:
            raise BadConfig(f"{base.model.spec.name} takes neither points nor boxes; choose another --model.")
        self._spec, self._params = base.model.spec, base.params
        self._guided = jax.jit(lambda *inputs: guided(*inputs))
        self._refine = jax.jit(lambda *inputs: base.model.decode(*inputs, self.points))

    def __call__(self, embedding: NDArray, frame: Frame, query: Query, guidance: Guidance) -> Asked:
        """Embedding (h, w, c) of a picture with its frame, what is asked first -> the last mask."""
        frame = frame._replace(logits_shape=self._spec.logits_shape)
        first = self._guided(self._params, embedding, self._prompts(frame, query), guidance)
        found = self._best(frame, first)
        steps: tuple[Callable[[NDArray], Query], ...] = (lambda mask: query._replace(box=box_of(mask)),)
        if self.points:
            steps = (lambda mask: query, *steps)
        for step in steps:
            mask = found.picture > 0
            if not mask.any():
                return found
            prompts = self._prompts(frame, step(mask))
            if self.points:
                prompts = prompts._replace(mask=found.low[None, ..., None])
            found = self._best(frame, self._refine(self._params, embedding, prompts))
        return found

    def _prompts(self, frame: Frame, query: Query) -> Prompts:
        return make_prompts(frame, [query], slots=_SLOTS)

    def _best(self, frame: Frame, prediction: Prediction) -> Asked:
        """The mask of the highest predicted IoU."""
        logits = finite_logits(prediction.logits[0], self._spec.name)
        low = logits[int(np.asarray(prediction.iou[0]).argmax())]
        return Asked(restore(frame, low), low)
