"""A model with a delta: encode, decode and apply that all take the same delta."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.serialise import fitted
from medvfm_jax.models.model import Model
from medvfm_jax.types import Delta, ModelSpec, Params, Prediction, Prompts


class AdaptedModel(NamedTuple):
    """A ``Model`` whose functions take a delta after ``params``; un-batched, batches come from ``jax.vmap``.

    Attributes:
        init: (key, params) -> delta; params may be shapes only.
        encode: (params, delta, image (S, S, 3), **kw) -> embedding.
        decode: (params, delta, embedding, prompts | None, multimask=False, **kw) -> Prediction.
        apply: (params, delta, image, prompts | None, multimask=False, **kw) -> Prediction.
        merge: (params, delta) -> params for the unadapted model, or NotMergeable.
        spec: that of the model.
        adapter: what adapts it.
    """

    init: Callable[[Array, Params], Delta]
    encode: Callable[..., Array]
    decode: Callable[..., Prediction]
    apply: Callable[..., Prediction]
    merge: Callable[[Params, Delta], Params]
    spec: ModelSpec
    adapter: Adapter


def adapt_model(adapter: Adapter, model: Model, prompts: Prompts | None = None) -> AdaptedModel:
    """Adapt all functions of a model at once; every call sees the sites it reaches and ignores the others.

    Args:
        adapter: what adapts it.
        model: to adapt.
        prompts: to look for sites with (arrays or shapes, without a leading batch axis); by default one box. Give one
            with a mask to adapt modules of the mask prompt.

    Returns:
        The model with a delta.
    """

    adapter = fitted(adapter, model.spec)

    def init(key: Array, params: Params) -> Delta:
        return adapter.init(key, model.apply, params, *example_inputs(model.spec, prompts))

    encode = adapter.wrap(model.encode, strict=False)
    decode = adapter.wrap(model.decode, strict=False)
    apply = adapter.wrap(model.apply, strict=False)
    return AdaptedModel(init, encode, decode, apply, adapter.merge, model.spec, adapter)


def example_inputs(spec: ModelSpec, prompts: Prompts | None = None) -> tuple[Any, Prompts | None]:
    """Return the shapes of an image and of the prompts (one box unless given) that a model takes."""
    image = jax.ShapeDtypeStruct(spec.input_shape, jnp.float32)
    if spec.task != "promptable":
        return image, None
    points = jax.ShapeDtypeStruct((1, 2, spec.rank), jnp.float32)
    return image, prompts or Prompts(points, jax.ShapeDtypeStruct((1, 2), jnp.int32))
