"""A predictor that takes the place of a model in tests of `evaluate`."""

import numpy as np

from medvfm_jax.types import ModelSpec


class HalfPredictor:
    """A predictor that finds the left half of every object it is asked about; nothing is compiled.

    Prompt-free it calls every pixel brighter than the mean class 1.
    """

    made = 0
    spec = ModelSpec("half", 16, (16, 16, 3), 16, task="semantic")

    def __init__(self, *_, flips, overlap, encoder=None):
        type(self).made += 1

    def classes(self, picture):
        return (picture[..., 0] > picture[..., 0].mean()).astype(np.int32)

    def label_map(self, picture, queries, values):
        out = np.zeros(picture.shape[:2], np.int32)
        for query, value in zip(queries, values, strict=True):
            x0, y0, x1, y1 = np.asarray(query.box, int)
            out[y0 : y1 + 1, x0 : (x0 + x1) // 2 + 1] = value
        return out
