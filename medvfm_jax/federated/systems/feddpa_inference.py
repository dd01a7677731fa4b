"""FedDPA at inference: every picture is predicted with its own mixture of the global and the local adapter.

After GlobalModel_generated.py of Lydia-yang/FedDPA; see ``feddpa`` for what is interpretation.
"""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.adapters import AdaptedModel
from medvfm_jax.data import make_loader
from medvfm_jax.federated.systems.feddpa import INSTANCES, instance_weight, mix
from medvfm_jax.images import preprocess
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.train.training_data import TrainingData
from medvfm_jax.types import Delta, Params


class InstanceMixed(Predictor):
    """A predictor for a client's local model that mixes it with the global one anew for every picture.

    FedDPA's adapters are in the image encoder alone, so the decoder is that of either model.
    """

    def __init__(
        self, adapted: AdaptedModel, params: Params, delta: Delta, references: Array, **options: Any
    ):
        super().__init__(adapted, params, delta, **options)
        self._references = references
        self._mixed = jax.jit(lambda *inputs: encode_mixed(adapted.encode, *inputs))

    def of_client(self, delta: Delta, references: Array) -> "InstanceMixed":
        """The same for another client, with nothing compiled again."""
        other = copy.copy(self.with_delta(delta))
        other._references = references
        return other

    def _embed(self, picture: NDArray) -> tuple[Any, Any]:
        prepared, frame = preprocess(self._spec, picture)
        return self._mixed(*self._weights, self._references, prepared), frame


def encode_mixed(encode: Any, params: Params, delta: Delta, references: Array, image: Array) -> Array:
    """Embedding (h, w, c) of one image (S, S, 3) under the mixture that its likeness to ``references`` asks for."""
    return encode(
        params, mix(delta, instance_weight(features(encode, params, delta, image), references)), image
    )


def features(encode: Any, params: Params, delta: Delta, image: Array) -> Array:
    """Image (S, S, 3) -> (c,): the mean of its embedding over all positions."""
    embedding = encode(params, delta, image)
    return embedding.reshape(-1, embedding.shape[-1]).mean(0)


def references_of(
    adapted: AdaptedModel, params: Params, delta: Delta, data: TrainingData, seed: int
) -> NDArray:
    """Features (S, c) of at most five training images of a client, drawn by ``seed``, under its local model."""
    one = jax.jit(lambda params, delta, image: features(adapted.encode, params, delta, image))
    return np.stack([np.asarray(one(params, delta, image)) for image in _drawn(data, seed)])


def _drawn(data: TrainingData, seed: int) -> Sequence[NDArray]:
    order = np.random.default_rng(seed).permutation(len(data.train))[:INSTANCES]
    batches = make_loader(
        data.source.dataset, [data.train[i] for i in sorted(order)], data.spec, data.task,
        batch_size=1, seed=seed, prompts=data.prompts, augment="none", shuffle=False, epochs=1, threads=0,
    )  # fmt: skip
    return [batch.image[0] for batch in batches]
