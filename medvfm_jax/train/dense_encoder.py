"""A frozen encoder's features of every place of a picture."""

from dataclasses import replace

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images import preprocess
from medvfm_jax.images.frame import Frame, to_target
from medvfm_jax.models.model import Model
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import MedvfmError, ModelSpec, Params


class BadFeatures(MedvfmError):
    """Features that are not finite, of which no similarity can be made."""


class DenseEncoder:
    """Pictures -> features on the grid of the encoder's embedding, by one compiled program.

    Attributes:
        spec: of the model; its logits are the grid of the features.
        params: what ``encode`` takes.
        encode: (params, prepared picture (S, S, 3)) -> features (h, w, c), compiled and differentiable.

    Examples:
        >>> encoder = DenseEncoder(*weights.load("sam-tiny-test"))
        >>> features, frame = encoder(np.zeros((20, 30, 3), np.uint8))
        >>> features.shape, frame.logits_shape
        ((4, 4, 32), (4, 4))
    """

    def __init__(self, model: Model, params: Params):
        """model, params: of pictures; volumes are seen slice by slice.

        Raises BadConfig for a model of volumes.
        """
        if model.spec.rank != 2 or len(model.spec.embedding) != 3:
            raise BadConfig(
                f"{model.spec.name} sees volumes, where features of pictures and slices are compared: choose a model "
                "of pictures, like dinov2-s or lite-medsam."
            )
        grid = tuple(model.spec.embedding[:2])
        self.spec: ModelSpec = replace(model.spec, logits_shape=grid, task="semantic", distance_map=False)
        self.params, self.encode = params, jax.jit(model.encode)

    def __call__(self, picture: NDArray) -> tuple[NDArray[np.float32], Frame]:
        """Picture (H, W, C) -> features (h, w, c) and the frame, whose logits are the grid of the features.

        Raises BadFeatures.
        """
        prepared, frame = preprocess(self.spec, picture)
        features = np.asarray(self.encode(self.params, prepared), np.float32)
        if not np.isfinite(features).all():
            raise BadFeatures(
                f"{self.spec.name} gives features that are not finite for this picture; its weights are damaged: use "
                "others."
            )
        return features, frame

    def mean(self, picture: NDArray) -> NDArray[np.float32]:
        """Picture (H, W, C) -> mean features (c,) of the places that lie on it, not on the padding."""
        features, frame = self(picture)
        inside = on_picture(frame)
        return features[inside].mean(0)


def on_picture(frame: Frame) -> NDArray[np.bool_]:
    """(h, w): which places of the grid lie on the picture."""
    return to_target(frame, np.ones((1, *frame.original), np.float32))[0] >= 0
