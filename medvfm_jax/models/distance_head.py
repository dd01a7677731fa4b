"""A distance map beside the classes of a network of pictures that needs no prompts, so that it tells objects apart."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.model import Model
from medvfm_jax.types import Params, Prediction

NAME = "distance_head"  # below mask_decoder, so that what tunes the decoder tunes it


def with_distance_head(model: Model, params: Params, classes: int) -> tuple[Model, Params]:
    """Add a 1x1 convolution of the last features, whose sigmoid is the distance to the edge of an object.

    It starts at zero, a distance of one half everywhere.  What the map means: ``models.sam.prompt_free.to_instances``.

    Args:
        model: semantic, of pictures, whose embedding has the height and width of its logits.
        params: its parameters; may be traced.
        classes: outputs of the model, background included.

    Returns:
        (model whose ``decode`` gives logits (classes + 1, h, w), its parameters with
        ``mask_decoder/distance_head``).

    Raises:
        NotConvertible: another model, or one with other classes.
    """
    spec = model.spec
    if (
        spec.task != "semantic"
        or spec.rank != 2
        or spec.distance_map
        or spec.embedding[:2] != spec.logits_shape
    ):
        raise NotConvertible(
            f"Objects are told apart by promptable models, and by networks of pictures that are trained from scratch; "
            f"{spec.name} as it is adapted is neither."
        )
    if spec.classes != classes:
        raise NotConvertible(f"{spec.name} has {spec.classes} classes, not {classes}.")

    def decode(
        params: Params, embedding: Array, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        out = model.decode(params, embedding, prompts, multimask, **kw)
        if isinstance(out, Prediction):
            return _beside(out, params, embedding)
        found, variables = out  # of a call with ``mutable``
        return _beside(found, params, embedding), variables

    def apply(
        params: Params, image: Array, prompts: Any = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        if "mutable" not in kw:
            return decode(params, model.encode(params, image, **kw), prompts, multimask, **kw)
        embedding, of_encoder = model.encode(params, image, **kw)
        prediction, of_decoder = decode(params, embedding, prompts, multimask, **kw)
        return prediction, _joined(of_encoder, of_decoder)

    changed = model._replace(
        decode=decode,
        apply=apply,
        init=lambda key: _with_head(model.init(key), spec.embedding[-1]),
        spec=replace(spec, distance_map=True),
        root=None,
    )
    return changed, _with_head(params, spec.embedding[-1])


def _with_head(params: Params, width: int) -> Params:
    decoder = params["params"]["mask_decoder"]
    head = {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)}
    return {**params, "params": {**params["params"], "mask_decoder": {**decoder, NAME: head}}}


def _beside(prediction: Prediction, params: Params, embedding: Array) -> Prediction:
    head = params["params"]["mask_decoder"][NAME]
    kernel, bias = (head[name].astype(embedding.dtype) for name in ("kernel", "bias"))
    distance = rearrange(embedding @ kernel + bias, "h w 1 -> 1 h w")
    logits = jnp.concatenate([prediction.logits, distance.astype(prediction.logits.dtype)])
    return prediction._replace(logits=logits)


def _joined(first: Any, second: Any) -> dict[str, Any]:
    """Variables of two calls of one root: what each kept, by collection and module."""
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in {**first, **second}}
