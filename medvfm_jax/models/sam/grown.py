"""SAM with further modules: pretrained parameters where the names are SAM's, random ones for what is new."""

from dataclasses import replace
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.root import Sam, as_model
from medvfm_jax.types import Params

LARGEST_SEED = 2**32 - 1


def grow(root: Sam, params: Params, seed: int, **facts: Any) -> tuple[Model, Params]:
    """The model of a root module that has SAM's modules and others, and its parameters.

    A parameter of SAM whose name and shape the new model has is taken over; those that it does not have are dropped,
    and what it has beyond them is drawn from ``seed`` by the modules' own initialisers.

    Args:
        root: with the spec of the modules inside.
        params: of the SAM it was made from; may be traced.
        seed: of what is new, from 0 to 2^32 - 1.
        facts: of the model's spec that differ from the root's.

    Returns:
        (model, its parameters).

    Raises:
        NotConvertible: a seed that is none.
    """
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise NotConvertible(f"A seed is a whole number from 0 to {LARGEST_SEED}, not {seed!r:.80}.")
    model = as_model(root)
    known = flatten_dict(dict(params["params"]))
    shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0))["params"])
    kept = {
        path: known[path]
        for path, leaf in shapes.items()
        if getattr(known.get(path), "shape", None) == leaf.shape
    }

    @jax.jit  # so that what is taken over is not drawn as well
    def fresh(key: Array) -> dict[tuple[str, ...], Array]:
        drawn = flatten_dict(model.init(key)["params"])
        return {"/".join(path): leaf for path, leaf in drawn.items() if path not in kept}

    new = {tuple(path.split("/")): leaf for path, leaf in fresh(jax.random.key(seed)).items()}
    model = model._replace(spec=replace(model.spec, **facts))
    return model, {**params, "params": unflatten_dict(kept | new)}


def as_kind(kind: type[Sam], root: Sam, **facts: Any) -> Any:
    """A root module of another class with the fields of a SAM, and further ones."""
    fields = {
        name: getattr(root, name) for name in Sam.__dataclass_fields__ if name not in ("parent", "name")
    }
    return kind(**fields | facts)


def sam_of(model: Model, task: str, what: str) -> Sam:
    """The root module of a SAM at build time, for a task ("promptable", "semantic", "" for either).

    Raises NotConvertible, which names ``what`` needs it.
    """
    if type(model.root) is not Sam or task not in (model.spec.task, ""):
        kind = {"semantic": " without prompts (--prompt none)", "promptable": " that takes prompts"}.get(
            task, ""
        )
        raise NotConvertible(f"{what} needs a SAM{kind}, and '{model.spec.name}' is another model.")
    return model.root
