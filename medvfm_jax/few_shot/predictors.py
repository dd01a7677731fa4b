"""What answers for a support: class index of every pixel of a picture, without prompts."""

from typing import Any, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.few_shot.learners import Learner
from medvfm_jax.images import restore
from medvfm_jax.predict.predictor import finite_logits
from medvfm_jax.types import ModelSpec

DIVERGED = "learning from the support diverged: lower --learning-rate, or raise --temperature"


class FewShotPredictor(Protocol):
    """What ``predict.case_prediction.predict_case`` asks without prompts."""

    spec: ModelSpec

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        ...


def learned_logits(logits: Any, model: str) -> NDArray[np.float32]:
    """Logits of what was learned from a support, as numpy; raises NotFinite."""
    return finite_logits(logits, f"What was learned from features of {model}", DIVERGED)


class LearnedPredictor:
    """Each pixel gets the class with the largest logit, which is interpolated between places."""

    def __init__(self, encoder: DenseEncoder, support: Support, learner: Learner, seed: int = 0):
        """Learns from the support at once. seed: of random weights, where the learner has some."""
        self.spec, self._encoder = encoder.spec, encoder
        present = np.ones(len(support.features), np.float32)
        self.model = jax.jit(learner.fit)(support.features, support.shares, present, jax.random.key(seed))
        self._logits = jax.jit(learner.logits)

    def logits(self, picture: NDArray) -> NDArray[np.float32]:
        """Picture (H, W, C) -> logits (K, H, W)."""
        features, frame = self._encoder(picture)
        return restore(frame, learned_logits(self._logits(self.model, features), self.spec.name))

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        return self.logits(picture).argmax(0).astype(np.int32)
