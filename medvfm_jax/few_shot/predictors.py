"""What answers for a support: class index of every pixel of a picture, without prompts."""

from typing import Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.few_shot.dense_features import DenseEncoder, Support
from medvfm_jax.few_shot.prototypes import cosine_logits, make_prototypes
from medvfm_jax.images import restore
from medvfm_jax.types import ModelSpec


class FewShotPredictor(Protocol):
    """What ``predict.case_prediction.predict_case`` asks without prompts."""

    spec: ModelSpec

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        ...


class PrototypePredictor:
    """Each pixel gets the class with the most similar prototype; similarities are interpolated between places."""

    def __init__(self, encoder: DenseEncoder, support: Support, *, temperature: float = 0.05, count: int = 1):
        """temperature, count: see ``prototypes.make_prototypes`` and ``cosine_logits``."""
        self.spec, self._encoder = encoder.spec, encoder
        self.prototypes = jax.jit(make_prototypes, static_argnames="count")(
            support.features, support.shares, count=count
        )
        self._logits = jax.jit(lambda features: cosine_logits(features, self.prototypes, temperature))

    def logits(self, picture: NDArray) -> NDArray[np.float32]:
        """Picture (H, W, C) -> (K, H, W): similarities divided by the temperature."""
        features, frame = self._encoder(picture)
        return restore(frame, self._logits(features))

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        return self.logits(picture).argmax(0).astype(np.int32)
