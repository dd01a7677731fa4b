"""Transforms that turn a model into another before it is adapted, rebuilt from their JSON-able configuration.

A configuration, {"kind": "prompt_free", "classes": 3}, is stored with a delta, so that the delta's model can be
built again.  A new transform is one function and one line in ``KINDS``.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from medvfm_jax.catalog import Catalog
from medvfm_jax.models.distance_head import with_distance_head
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam import prompt_free
from medvfm_jax.models.sam.auto_sam import to_auto_sam
from medvfm_jax.models.sam.deep_upscaling import deep_upscaling
from medvfm_jax.models.sam.desam import to_desam
from medvfm_jax.models.sam.h_sam import to_h_sam
from medvfm_jax.models.sam.input_rule import with_input
from medvfm_jax.models.sam.prompt_free import to_semantic
from medvfm_jax.models.sam.samus import to_samus
from medvfm_jax.models.sam.volume_decoder import to_volume_decoder
from medvfm_jax.models.slab import slab_model
from medvfm_jax.models.vit.linear_head import with_linear_head
from medvfm_jax.types import MedvfmError, Normalise, Params, Resize

LEAST_TILE, MOST_TILE = 16, 16_384  # pixels of a side
MOST_NESTED = (
    8  # transforms, one of what another gives; the configuration may come from the delta of a stranger
)


def to_slab(
    model: Model, params: Params, depth: int, of: Mapping[str, Any] | None = None
) -> tuple[Model, Params]:
    """The model of slices that the transform ``of`` gives, as one of slabs of ``depth`` slices; see ``models.slab``."""
    if isinstance(of, Mapping) and of.get("kind") == "slab":
        raise BadTransform("A slab is made of slices, not of slabs.")
    model, params = transform(of, model, params)
    return slab_model(model, depth), params


def to_input(
    model: Model,
    params: Params,
    image_size: int | None = None,
    normalise: Normalise | None = None,
    resize: Resize | None = None,
    pad_before_norm: bool = False,
    of: Mapping[str, Any] | None = None,
) -> tuple[Model, Params]:
    """The model that the transform ``of`` gives, behind another input; see ``sam.input_rule.with_input``."""
    if isinstance(of, Mapping) and of.get("kind") == "input":
        raise BadTransform("A model has one input rule, not several.")
    model, params = transform(of, model, params)
    return with_input(model, image_size, normalise, resize, pad_before_norm), params


def to_tiles(
    model: Model, params: Params, side: int, of: Mapping[str, Any] | None = None
) -> tuple[Model, Params]:
    """The model that the transform ``of`` gives, for tiles of ``side`` x ``side`` pixels; see ``images.tiles``."""
    model, params = transform(of, model, params)
    spec = model.spec
    if spec.task != "semantic" or spec.rank != 2 or spec.resize == "none" or spec.tile is not None:
        raise BadTransform(
            f"Tiles are cut out of pictures for models that need no prompts and see one picture at a time, which "
            f"{spec.name} as it is adapted does not; leave out --tile."
        )
    if type(side) is not int or not LEAST_TILE <= side <= MOST_TILE:
        raise BadTransform(
            f"A tile has a side of {LEAST_TILE} to {MOST_TILE} pixels, a whole number, not {side!r:.80}."
        )
    return model._replace(spec=replace(spec, tile=side)), params


def following(change: Callable[..., tuple[Model, Params]]) -> Callable[..., tuple[Model, Params]]:
    """A change (model, params, seed) as one of the model that another transform, ``of``, gives."""

    def changed(
        model: Model, params: Params, of: Mapping[str, Any] | None = None, seed: int = 0
    ) -> tuple[Model, Params]:
        return change(*transform(of, model, params), seed)

    changed.__doc__ = change.__doc__
    return changed


def to_instances(model: Model, params: Params, classes: int) -> tuple[Model, Params]:
    """A model that tells objects apart without prompts: one more mask token of a promptable one, or one more head."""
    change = with_distance_head if model.spec.task == "semantic" else prompt_free.to_instances
    return change(model, params, classes)


class BadTransform(MedvfmError, ValueError):
    """A configuration of a transform that cannot be used."""


KINDS: Catalog[Callable[..., tuple[Model, Params]]] = Catalog(
    "transform of a model",
    {
        "prompt_free": to_semantic,
        "instances": to_instances,
        "linear_head": with_linear_head,
        "slab": to_slab,
        "input": to_input,
        "tile": to_tiles,
        "deep_upscaling": following(deep_upscaling),
        "auto_sam": to_auto_sam,
        "h_sam": following(to_h_sam),
        "samus": following(to_samus),
        "desam": to_desam,
        "volume_decoder": following(to_volume_decoder),
    },
    BadTransform,
)


def transform(config: Mapping[str, Any] | None, model: Model, params: Params) -> tuple[Model, Params]:
    """(Model, params) -> (Model, params) as ``config`` says; None changes nothing.

    params may be traced, so that ``jax.eval_shape`` gives the shapes of those that come out.
    Raises BadTransform for an unknown kind or option, and what the transform raises (NotConvertible).
    """
    if config is None:
        return model, params
    inner, depth = config, 0
    while isinstance(inner, Mapping):
        inner, depth = inner.get("of"), depth + 1
    if depth > MOST_NESTED:
        raise BadTransform(f"A transform follows {depth - 1} others; at most {MOST_NESTED - 1} can.")
    kind = config.get("kind") if isinstance(config, Mapping) else None
    make = KINDS[kind]
    options = {name: value for name, value in config.items() if name != "kind"}
    try:
        inspect.signature(make).bind(model, params, **options)
    except TypeError as error:
        raise BadTransform(f"The transform '{kind}' does not take these options: {error}.") from None
    return make(model, params, **options)


def seeded(config: Mapping[str, Any] | None, seed: int) -> dict[str, Any] | None:
    """The configuration with a seed for every transform in it that starts new parameters at random."""
    if config is None:
        return None
    if config.get("of") is not None:
        config = {**config, "of": seeded(config["of"], seed)}
    return (
        {**config, "seed": seed}
        if "seed" in inspect.signature(KINDS[config["kind"]]).parameters
        else {**config}
    )


def kinds_of(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Names of the transforms in a configuration, the last to be applied first."""
    return () if config is None else (config["kind"], *kinds_of(config.get("of")))
