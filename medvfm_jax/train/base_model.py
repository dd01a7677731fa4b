"""A model to be adapted: its weights, what is known of it, the transform and the adapter around it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medvfm_jax import weights
from medvfm_jax.adapters import (
    AdaptedModel,
    adapt_model,
    chain,
    from_config,
)
from medvfm_jax.models import catalog
from medvfm_jax.models.backend import on_host
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.scan import unstack
from medvfm_jax.models.transforms import transform
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.seen_at_once import (
    options_of_shape,
)
from medvfm_jax.types import ModelSpec, Params
from medvfm_jax.weights import artifacts


class Base(NamedTuple):
    """A model to be adapted; fingerprint: of its weights as loaded, before any transform."""

    model: Model
    params: Params
    fingerprint: str


def load_base(
    name: str,
    *,
    classes: int,
    seed: int,
    dtype: str,
    file: Path | None = None,
    offline: bool = False,
    keep: str = "everything",
    shape: tuple[int, ...] | None = None,
    memory: bool = False,
    scan_blocks: bool = False,
) -> Base:
    """Published weights, or for models trained from scratch random ones from ``seed`` with ``classes`` outputs.

    keep: for the backward pass, see ``catalog.KEEP``. shape: of a patch or picture that it is built for, see
    ``seen_at_once.asked_shape``. memory: with what follows objects through a volume, for models that have it.
    scan_blocks: with stacked blocks; the fingerprint is that of plain ones.

    Raises BadConfig for a model that cannot keep less than everything, and what ``weights.load`` raises.
    """
    options = _options(name, classes=classes, dtype=dtype, keep=keep, shape=shape, scan_blocks=scan_blocks)
    if memory:
        options["memory"] = True
    if "classes" not in options and entry_of(name).complete and classes != entry_of(name).spec.classes:
        raise BadConfig(
            f"Model '{name}' has {entry_of(name).spec.classes} classes with the background, and {classes} are asked "
            "for; choose a model whose decoder starts at random, like merlin."
        )
    if entry_of(name).start == "random" and file is None:
        model = catalog.build(name, **options)
        plain = {key: value for key, value in options.items() if key != "scan_blocks"}
        with on_host():
            params = catalog.build(name, **plain).init(jax.random.key(seed))
            params = catalog.stack_blocks(params, name) if scan_blocks else params
    else:
        model, params = weights.load(name, file, offline=offline, seed=seed, **options)
    return Base(model, params, artifacts.fingerprint(unstack(params) if scan_blocks else params))


def model_shapes(
    name: str,
    *,
    classes: int,
    dtype: str,
    keep: str = "everything",
    shape: tuple[int, ...] | None = None,
    scan_blocks: bool = False,
    fingerprint: str = "",
) -> Base:
    """A model without its weights, whose parameters are shapes; see ``load_base``, also for what is raised."""
    options = _options(name, classes=classes, dtype=dtype, keep=keep, shape=shape, scan_blocks=scan_blocks)
    model = catalog.build(weights.registry.model_of(name), **options)
    return Base(model, jax.eval_shape(model.init, jax.random.key(0)), fingerprint)


def _options(
    name: str, *, classes: int, dtype: str, keep: str, shape: tuple[int, ...] | None, scan_blocks: bool
) -> dict[str, Any]:
    """Options of ``models.build``, see ``load_base``; raises BadConfig for what the model cannot do."""
    takes = entry_of(name).options
    options = options_of(dtype) | options_of_shape(shape)
    if keep != "everything":
        if "remat" not in takes:
            raise BadConfig(
                f"Model '{name}' keeps everything for the backward pass; leave --keep {keep} out."
            )
        options["remat"] = catalog.KEEP[keep]
    if scan_blocks:
        if "scan_blocks" not in takes:
            raise BadConfig(f"Model '{name}' has no equal blocks to stack; leave --scan-blocks out.")
        options["scan_blocks"] = True
    if "classes" in takes:
        options["classes"] = classes
    return options


def options_of(dtype: str) -> dict[str, Any]:
    """Options of ``models.build`` for a compute dtype of the settings."""
    return {"dtype": jnp.bfloat16} if dtype == "bfloat16" else {}


def entry_of(name: str) -> ModelEntry:
    """What is known of the model that weights, or a model, of this name are for; raises UnknownModel."""
    return catalog.MODELS[weights.registry.model_of(name)]


def spec_of(name: str) -> ModelSpec:
    """What a model is that is asked for masks without a delta, before its weights are fetched.

    Raises UnknownModel, and BadConfig for a model that gives features instead of masks.
    """
    spec = entry_of(name).spec
    if spec.task == "features":
        raise BadConfig(
            f"Model '{name}' gives features, not masks; adapt it first, or choose one that segments, like lite-medsam."
        )
    return spec


def transformed(base: Base, config: Mapping[str, Any] | None) -> Base:
    """The model as a system transforms it, see ``models.transforms``; None changes nothing.

    Parameters that are shapes stay shapes.
    """
    if not is_abstract(base.params):
        model, params = transform(config, base.model, base.params)
        return Base(model, params, base.fingerprint)
    models: list[Model] = []

    def traced(params: Params) -> Params:
        model, params = transform(config, base.model, params)
        models.append(model)
        return params

    params = jax.eval_shape(traced, base.params)
    return Base(models[0], params, base.fingerprint)


def is_abstract(params: Params) -> bool:
    """Whether parameters are shapes alone."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))


def with_adapter(base: Base, adapter: Mapping[str, Any] | None) -> AdaptedModel:
    """Put an adapter, given by its JSON configuration, around a base model; None changes nothing."""
    return adapt_model(chain() if adapter is None else from_config(adapter), base.model)
