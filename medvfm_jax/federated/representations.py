"""What algorithms see of a model beside its loss: features of a batch (MOON), logits over classes (FedDF)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters import AdaptedModel
from medvfm_jax.train.task import predictor
from medvfm_jax.types import Batch, Delta, Params, Prompts


def make_features(
    adapted: AdaptedModel, trains_encoder: bool, cached: bool
) -> Callable[[Params, Delta, Batch], Array]:
    """Return ``features(params, delta, batch)`` (B, d), for ``algorithms.moon``.

    The mean of the embedding over all positions; where the encoder is frozen, for which that never changes, the logits
    of the decoder.  Both are an interpretation: MOON contrasts the output of a classifier's projection head.
    """
    predict = predictor(adapted, cached=cached)

    def features(params: Params, delta: Delta, batch: Batch) -> Array:
        def one(image: Array, prompts: Prompts | None) -> Array:
            if trains_encoder:
                embedding = adapted.encode(params, delta, image)
                return embedding.reshape(-1, embedding.shape[-1]).mean(0)
            return predict(params, delta, image, prompts).logits.ravel()

        return jax.vmap(one)(batch.image, batch.prompts)

    return features


def make_logits(adapted: AdaptedModel, cached: bool) -> Callable[[Params, Delta, Batch], Array]:
    """Return ``logits(params, delta, batch)`` (B, ..., classes) of every pixel, for ``algorithms.feddf``.

    Of a promptable model the classes are "not" and "the object", with logits 0 and that of its mask.
    """
    predict = predictor(adapted, cached=cached)

    def logits(params: Params, delta: Delta, batch: Batch) -> Array:
        def one(image: Array, prompts: Prompts | None) -> Array:
            found = predict(params, delta, image, prompts).logits
            if found.ndim == 4:
                return jnp.stack([jnp.zeros_like(found[:, 0]), found[:, 0]], axis=-1)
            return jnp.moveaxis(found, 0, -1)

        return jax.vmap(one)(batch.image, batch.prompts)

    return logits
