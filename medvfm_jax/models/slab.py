"""A model of slices as a model of slabs: one ``vmap`` over slices whose axis has a name.

Whatever runs inside may ask its neighbours by a collective over that axis (``lax.all_gather``, ``lax.ppermute``);
without one, slices know nothing of each other and a slab gives what they give alone, bit by bit.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
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
        if spec.rank == 3:
            raise NoSlab(
                f"A slab is made of slices, and {spec.name} sees volumes already; take another adapter."
            )
        raise NoSlab(
            f"Slabs are segmented without prompts, slice by slice, but {spec.name} needs prompts; use --prompt none."
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


def slices() -> int:
    """Slices of the slab that is being traced; 1 outside one."""
    try:
        return jax.lax.axis_size(SLICES)
    except NameError:  # no axis of that name
        return 1


def neighbours(z: Array) -> tuple[Array, Array]:
    """z of this slice -> that of the slice before and of the one after in the slab; zeros beyond its ends."""
    n = slices()
    if n == 1:
        return jnp.zeros_like(z), jnp.zeros_like(z)
    here = jax.lax.axis_index(SLICES)
    # Round in a circle, which is what vmap asks of a permutation; the ends are then cut.
    before = jax.lax.ppermute(z, SLICES, [(i, (i + 1) % n) for i in range(n)])
    after = jax.lax.ppermute(z, SLICES, [(i, (i - 1) % n) for i in range(n)])
    return jnp.where(here > 0, before, 0), jnp.where(here < n - 1, after, 0)


def _over_slices(one: Any, out_axes: int = 0) -> Any:
    return jax.vmap(one, out_axes=out_axes, axis_name=SLICES)
