"""What algorithms see of a model beside its loss: features (MOON), logits over classes (FedDF), its parts (FeSViBS)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters import AdaptedModel, at, tap
from medvfm_jax.federated.systems.fesvibs import PATCH_EMBED, SplitModel
from medvfm_jax.train.task import make_loss, predictor
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


def make_split(adapted: AdaptedModel, params: Params, objective: str) -> SplitModel:
    """Cut a model after the patch embedding and after the image encoder, for ``systems.fesvibs``.

    objective: as in ``make_loss``; of a part's program nothing is left but what its results need.
    """
    shape = adapted.spec.input_shape
    given = at(PATCH_EMBED, "around", lambda key, site: {}, lambda slot, call, x: slot["patches"])
    encode, patch = given.wrap(adapted.encode, strict=False), tap(adapted.encode, PATCH_EMBED)
    scored = make_loss(adapted, objective, cached=True)

    def stem(delta: Delta, images: Array) -> Array:
        return jax.vmap(lambda image: patch(params, delta, image)[1][PATCH_EMBED])(images)

    def blocks(delta: Delta, patches: Array) -> Array:
        blank = jnp.zeros(shape, patches.dtype)  # the patches are there already
        return jax.vmap(lambda x: encode(params, {PATCH_EMBED: {"patches": x}}, delta, blank))(patches)

    return SplitModel(stem, blocks, lambda delta, batch, key: scored(params, delta, batch, key)[0])
