"""The record every backbone is handed around as: a few pure functions and a description."""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
from jax import Array

from medvfm_jax.types import ModelSpec, Params, Prediction

# Fixed numbers of the checkpoints (batch-norm statistics, SAM's random frequencies), not counted as parameters.
BUFFERS = ("mean", "var", "positional_encoding_gaussian_matrix")


class Model(NamedTuple):
    """A vision model as pure functions of ``params``; images are un-batched, batches come from ``jax.vmap``.

    Shapes are those of models of pictures; ``spec.input_shape`` and ``spec.logits_shape`` say those of volumes.
    All three functions call one Linen root module, so module paths start with ``image_encoder/`` whichever of them
    runs; ``kw`` goes to Linen's ``apply`` (``mutable=["taps"]``, for example).

    Attributes:
        encode: (params, image (S, S, 3), **kw) -> embedding (h, w, c).
        decode: (params, embedding, prompts | None, multimask=False, **kw) -> Prediction.
        apply: (params, image, prompts | None, multimask=False, **kw) -> Prediction; equals decode of encode.
        init: (key) -> params, ``{"params": {...}}`` in float32.
        spec: what a user must know before using the model.
        root: the Linen module behind them, for conversions within ``models/``; not needed elsewhere.
    """

    encode: Callable[..., Array]
    decode: Callable[..., Prediction]
    apply: Callable[..., Prediction]
    init: Callable[[Array], Params]
    spec: ModelSpec
    root: Any = None

    @property
    def parameters(self) -> int:
        """How many numbers training could change; traces ``init``."""
        shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(self.init, jax.random.key(0)))
        return sum(prod(leaf.shape) for path, leaf in shapes if path[-1].key not in BUFFERS)

    def __repr__(self) -> str:
        return f"Model({self.spec.name}, {self.spec.size} px, task={self.spec.task})"
