"""A model of slices as a model of slabs: one ``vmap`` over slices whose axis has a name.

Whatever runs inside may ask its neighbours by a collective over that axis (``lax.all_gather``, ``lax.ppermute``);
without one, slices know nothing of each other and a slab gives what they give alone, bit by bit.
"""

from dataclasses import replace
from typing import Any

import jax
from jax import Array

from medvfm_jax.mesh_axes import SLICES
from medvfm_jax.models.model import Model
from medvfm_jax.types import MedvfmError, Params, Prediction

MOST_SLICES = 128  # all of them go through the model at once; the depth may come from the delta of a stranger


class NoSlab(MedvfmError, ValueError):
    """A model or a depth of which no slab can be made."""


def slab_model(model: Model, depth: int) -> Model:
    """Model of images (S, S, 3) without prompts -> of slabs (depth, S, S, 3) with the same parameters.

    encode gives (depth, h, w, c), apply and decode Prediction(logits (C, depth, h, w)).
    Raises NoSlab for a model with prompts, or of volumes already, and for less than one slice or more
    than ``MOST_SLICES``.
    """
    spec = model.spec
    if spec.task != "semantic" or spec.rank != 2:
        what = "sees volumes already" if spec.rank == 3 else "needs prompts"
        raise NoSlab(
            f"Slabs are segmented without prompts, slice by slice, but {spec.name} {what}; use --prompt none."
        )
    if spec.distance_map:
        raise NoSlab(f"{spec.name} tells objects in pictures apart; a slab has none.")
    if type(depth) is not int or not 1 <= depth <= MOST_SLICES:
        raise NoSlab(f"A slab needs at least one slice and at most {MOST_SLICES}, not {depth!r:.80}.")

    def encode(params: Params, slab: Array, **kw: Any) -> Array:
        return _over_slices(lambda image: model.encode(params, image, **kw))(slab)

    def decode(
        params: Params, embedding: Array, prompts: None = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        one = _over_slices(lambda x: model.decode(params, x, None, **kw).logits, out_axes=1)
        return Prediction(one(embedding))

    def apply(
        params: Params, slab: Array, prompts: None = None, multimask: bool = False, **kw: Any
    ) -> Prediction:
        return Prediction(_over_slices(lambda x: model.apply(params, x, None, **kw).logits, out_axes=1)(slab))

    shapes = {
        "input_shape": (depth, *spec.input_shape),
        "embedding": (depth, *spec.embedding),
        "logits_shape": (depth, *spec.logits_shape),
    }
    return Model(encode, decode, apply, model.init, replace(spec, **shapes))


def _over_slices(one: Any, out_axes: int = 0) -> Any:
    return jax.vmap(one, out_axes=out_axes, axis_name=SLICES)
