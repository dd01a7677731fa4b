"""From settings to something that trains: base weights, transform of the model, adapter, start of the delta."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax import systems, traces, weights
from medvfm_jax.adapters import (
    AdaptedModel,
    Count,
    NoSuchSite,
    WrongSite,
    adapt_model,
    chain,
    count,
    from_config,
)
from medvfm_jax.adapters.task_tables import of_task, tasks_of, with_tasks
from medvfm_jax.adapters.training_options import check_ranks
from medvfm_jax.data import Dataset
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation
from medvfm_jax.models import catalog
from medvfm_jax.models.backend import on_host
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.scan import unstack, unstack_delta
from medvfm_jax.models.transforms import seeded, transform
from medvfm_jax.runs.run_directory import CONFIG, read_record
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.settings.groups import ModelConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.systems import System
from medvfm_jax.systems.fitting import why
from medvfm_jax.train.preparation import PREPARATION, stored_preparation
from medvfm_jax.train.seen_at_once import (
    check_shape,
    options_of_shape,
    recorded_shape,
    stored_shape,
    with_depth,
    with_tile,
)
from medvfm_jax.types import Delta, MedvfmError, ModelSpec, Params
from medvfm_jax.weights import artifacts

SETTINGS = "settings_sha256"  # in the metadata of a delta
# Of a run, stored with its delta.
RESOLVED = (
    "fingerprint",
    "input_shape",
    PREPARATION,
    "transform",
    "adapter",
    "prompt",
    "classes",
    "labels",
)


NO_TASKS: Mapping[str, int] = {}
EVERY_TASK = ""  # instead of the name of a site: the delta with the tables of all tasks


class TaskUnknown(MedvfmError, ValueError):
    """A model that knows several tasks was not told which one, or one that it does not know."""


class ForeignDelta(MedvfmError):
    """A run directory holds a delta that its run did not make."""


class Base(NamedTuple):
    """A model to be adapted; fingerprint: of its weights as loaded, before any transform."""

    model: Model
    params: Params
    fingerprint: str


class Assembled(NamedTuple):
    """A model with its adapter and what it is trained for; nothing is trained yet.

    base: as the system transforms it.  delta: at the start.  prompt: simulated in training, "none" for none.
    objective: name of the loss, see ``train.task``.  transform, adapter: JSON-able, from which both are built again.
    shape: of a patch or picture that the base was built for; None: the model's own size of pictures.
    """

    base: Base
    adapted: AdaptedModel
    delta: Delta
    prompt: str
    objective: str
    transform: dict[str, Any] | None
    adapter: dict[str, Any]
    shape: tuple[int, ...] | None = None

    @property
    def size(self) -> Count:
        """How many numbers train."""
        return count(self.delta, self.base.params)

    def with_adapter(self, adapter: dict[str, Any], seed: int) -> "Assembled":
        """The same with another adapter, given by its JSON-able configuration."""
        adapted, delta = _with_start(self.base, adapter, seed)
        return self._replace(adapted=adapted, delta=delta, adapter=adapter)

    def record(self) -> dict[str, Any]:
        """For ``config.json``."""
        return {
            "prompt": self.prompt,
            "transform": self.transform,
            "adapter": self.adapter,
            "objective": self.objective,
            "fingerprint": self.base.fingerprint,
            **recorded_shape(self.shape),
        }


def assemble(
    config: ModelConfig,
    name: str,
    system: System,
    *,
    classes: int,
    seed: int,
    offline: bool = False,
    keep: str = "everything",
    shape: tuple[int, ...] | None = None,
    depth: int | None = None,
    tile: int | None = None,
    elsewhere: Collection[str] = (),
    scan_blocks: bool = False,
    tasks: Mapping[str, int] = NO_TASKS,
) -> Assembled:
    """Load the weights and put the system's parts around the model.

    name: of the system, stored with the adapter.  classes: labels with the background.  seed: of initial values.
    keep, shape: see ``load_base``.  depth: slices of a slab, if not the system's own.  tile: side of the squares that
    pictures are cut into.  elsewhere: see ``systems.configure``.  scan_blocks: stacked, see
    ``models.scan``.  tasks: of sites, for adapters that know tasks.
    Raises BadConfig, and what weights, transforms and adapters raise.
    """
    base = load_base(
        config.model,
        classes=classes,
        seed=seed,
        dtype=config.dtype,
        file=config.weights,
        offline=offline,
        keep=keep,
        shape=shape,
        scan_blocks=scan_blocks,
    )
    asked = {"classes": classes, "seed": seed, "depth": depth, "tile": tile, "elsewhere": elsewhere}
    asked["tasks"] = tasks
    assembled = adapt_base(base, config, name, system, **asked)._replace(shape=shape)
    check_shape(shape, assembled.base.model.spec, name)
    if scan_blocks:
        plain = adapt_base(_plain(config.model, classes, config.dtype, shape), config, name, system, **asked)
        check_stacked(assembled.delta, plain.delta, name, config.model)
    return assembled


def _plain(name: str, classes: int, dtype: str, shape: tuple[int, ...] | None) -> Base:
    """The shapes of a model whose blocks are not stacked."""
    options = options_of(dtype) | options_of_shape(shape)
    options |= {"classes": classes} if "classes" in entry_of(name).options else {}
    model = catalog.build(weights.registry.model_of(name), **options)
    return Base(model, jax.eval_shape(model.init, jax.random.key(0)), "")


def check_stacked(delta: Delta, plain: Delta, adapter: str, model: str) -> None:
    """Raise BadConfig unless a delta of stacked blocks can be told apart into one of plain blocks."""
    apart = jax.eval_shape(lambda d: unstack_delta(d, entry_of(model).group), delta)
    found, expected = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (apart, plain))
    if found != expected:
        raise BadConfig(
            f"The arrays of '{adapter}' on stacked blocks are not those of single ones; leave --scan-blocks out."
        )


def adapt_base(
    base: Base,
    config: ModelConfig,
    name: str,
    system: System,
    *,
    classes: int,
    seed: int,
    depth: int | None = None,
    tile: int | None = None,
    elsewhere: Collection[str] = (),
    tasks: Mapping[str, int] = NO_TASKS,
) -> Assembled:
    """The system's parts around a model, as ``assemble``; where ``base.params`` are shapes, so is the delta."""
    spec = base.model.spec
    if spec.task == "features":
        system = systems.for_features(system)
    prompt = config.resolved_prompt(system, "semantic" if spec.task == "features" else spec.task)
    check_prompts(spec, prompt)
    change = with_depth(system.transform(spec, prompt, classes), name, depth)
    transform = seeded(with_tile(change, tile), seed)
    base = transformed(base, transform)
    options = systems.parse_assignments(config.set)
    adapter = with_tasks(systems.configure(name, system, base.model.spec, options, elsewhere), tasks)
    objective = config.resolved_objective(system, base.model.spec.task)
    if (objective == "instances") != base.model.spec.distance_map:
        raise BadConfig(
            f"System '{name}' on model '{config.model}' gives {'a' if base.model.spec.distance_map else 'no'} distance "
            f"map, which objective={objective} does not fit; leave out --objective."
        )
    try:
        adapted, delta = _with_start(base, adapter, seed)
        check_ranks(adapted.adapter.config, delta)
    except (NoSuchSite, WrongSite) as error:
        raise type(error)(f"System '{name}' does not fit model '{config.model}': {why(error)}") from error
    return Assembled(base, adapted, delta, prompt, objective, transform, adapter)


def check_prompts(spec: ModelSpec, prompt: str) -> None:
    """Raise BadConfig for prompts in volumes of a kind that the model was not built for."""
    kinds = {"none": (), "mixed": ("box", "point")}.get(prompt, (prompt,))
    lacking = [kind for kind in kinds if kind not in spec.prompts]
    if spec.rank == 3 and lacking:
        offered = [*(f"--prompt {kind}" for kind in spec.prompts), "--prompt none"]
        raise BadConfig(f"{spec.name} takes no {lacking[0]} prompts in volumes; use {' or '.join(offered)}.")


def _with_start(base: Base, adapter: dict[str, Any], seed: int) -> tuple[AdaptedModel, Delta]:
    adapted, key = with_adapter(base, adapter), jax.random.fold_in(jax.random.key(seed), 1)
    if _abstract(base.params):
        return adapted, jax.eval_shape(adapted.init, key, base.params)
    return adapted, adapted.init(key, base.params)


class Loaded(NamedTuple):
    """An adapted model; delta is empty and metadata None for a model without adapter. metadata: see `artifacts`.

    note: what could not be checked about the delta, "" for nothing.
    words: what the computation follows from, beside the shapes of the weights; see ``traces``.
    preparation: of volumes before the model sees them.
    """

    base: Base
    adapted: AdaptedModel
    delta: Delta
    metadata: Mapping[str, Any] | None
    note: str = ""
    words: tuple[Any, ...] = ()
    preparation: Preparation = AS_THEY_ARE


def load_adapted(
    delta: Path,
    *,
    model: str | None,
    dtype: str,
    file: Path | None = None,
    offline: bool = False,
    run: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> Loaded:
    """Delta file -> the model it was made for, adapted by it.

    file: the base weights, if not published.  run: ``config.json`` of the run directory that the delta lies in.
    task: site whose task the model is for, of a delta that knows several; EVERY_TASK leaves it open.
    Raises TaskUnknown, WrongBaseWeights if ``model`` or ``file`` give other weights, BadDelta for arrays that are not
    those of the adapter, ForeignDelta if the run made another one, and what ``load_base`` raises.
    """
    arrays, metadata = artifacts.load_delta(delta)
    artifacts.require(metadata, ("base", "fingerprint", "adapter", "prompt", "classes"), delta)
    note = "" if run is None else check_run(run, metadata, delta)
    name, classes = model or metadata["base"], metadata["classes"]
    seed, shape = metadata.get("seed", 0), stored_shape(metadata, entry_of(name), delta)
    whole = artifacts.COMPRESSION in metadata
    if whole:
        base = _without_numbers(name, classes=classes, dtype=dtype, shape=shape, metadata=metadata)
    else:
        base = load_base(
            name, classes=classes, seed=seed, dtype=dtype, file=file, offline=offline, shape=shape
        )
        artifacts.check_base(metadata, base.params)
    change = stored_transform(metadata, base.model.spec)
    base = transformed(base, change)
    if whole:
        base = base._replace(params=jax.tree.map(_nothing, base.params))
        arrays = {**{part: {} for part in _parts(metadata)}, **arrays}  # a part may have no arrays
    if base.model.spec.task == "features":
        raise artifacts.BadDelta(
            f"{delta}: its model, {name}, gives features, and it has no layer that makes masks."
        )
    _check_labels(metadata, base.model.spec, delta)
    adapted = with_adapter(base, metadata["adapter"])
    preparation = stored_preparation(metadata, base.model.spec, delta)
    words = (name, dtype, classes, shape, change, metadata["adapter"])
    expected = traces.shapes(["delta", *words], lambda: _shapes_of(adapted, base, delta))
    artifacts.check_arrays(arrays, expected, delta)
    if task != EVERY_TASK:
        arrays = told(arrays, metadata["adapter"], task, str(delta))
    if whole and adapted.adapter.levels == {"params"}:  # then it is the plain model with other numbers
        params = jax.device_put(adapted.merge(base.params, arrays))
        base, arrays, words = base._replace(params=params), {}, (name, dtype, classes, shape, change)
        adapted = with_adapter(base, None)
    return Loaded(base, adapted, arrays, metadata, note, words, preparation)


def told(delta: Delta, adapter: Mapping[str, Any] | None, site: str | None, name: str) -> Delta:
    """The delta for the task of a site; as it is where it knows one task, and no site is given.

    name: of the delta, for TaskUnknown; see ``task_of_site``.
    """
    task = task_of_site(adapter, site, name)
    return delta if task is None else of_task(delta, task)


def task_of_site(adapter: Mapping[str, Any] | None, site: str | None, name: str) -> int | None:
    """Number of the task of a site; None where the adapter knows one task, and no site is given.

    adapter: its configuration.  name: of what was trained, for the message.
    Raises TaskUnknown for a site that it does not know, or without one where it knows several.
    """
    tasks = tasks_of(adapter)
    if not tasks:
        if site is not None:
            raise TaskUnknown(f"{name} knows one task and not '{site}'; leave --task out.")
        return None
    if site not in tasks:
        wrong = "it was not said whose is meant" if site is None else f"'{site}' is none of them"
        raise TaskUnknown(
            f"{name} was trained on the tasks of the sites {', '.join(tasks)}, and {wrong}: give one of them, which "
            "segment and evaluate take as --task."
        )
    return tasks[site]


def _without_numbers(
    name: str, *, classes: int, dtype: str, shape: tuple[int, ...] | None, metadata: Mapping[str, Any]
) -> Base:
    """The model of a delta that holds all of its numbers; parameters are shapes."""
    options = options_of(dtype)
    options |= options_of_shape(shape)
    if "classes" in entry_of(name).options:
        options["classes"] = classes
    model_name = weights.registry.model_of(name)
    model = catalog.build(model_name, **options)
    return Base(model, jax.eval_shape(model.init, jax.random.key(0)), metadata["fingerprint"])


def _nothing(leaf: Any) -> np.ndarray:
    """In place of a parameter that a compressed model does not read: NaN, which no memory is needed for."""
    return np.broadcast_to(np.array(np.nan, leaf.dtype), leaf.shape)


def _parts(metadata: Mapping[str, Any]) -> list[str]:
    parts = (metadata["adapter"] or {}).get("parts")
    return list(parts) if isinstance(parts, Mapping) else []


def _shapes_of(adapted: AdaptedModel, base: Base, delta: Path) -> Delta:
    """Shapes of the arrays that the adapter in the metadata of a delta has; raises BadDelta for impossible ones."""
    try:
        return jax.eval_shape(adapted.init, jax.random.key(0), base.params)
    except (TypeError, ValueError, OverflowError, MemoryError, ZeroDivisionError, AssertionError) as error:
        if isinstance(error, MedvfmError):
            raise
        raise artifacts.BadDelta(
            f"{delta}: the adapter that its metadata describe does not fit its model ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{next(iter(str(error).splitlines()), type(error).__name__):.200}"


def _check_labels(metadata: Mapping[str, Any], spec: ModelSpec, delta: Path) -> None:
    """Raise BadDelta unless classes, labels and outputs of the model in a delta's metadata are as many."""
    classes, labels = metadata["classes"], metadata.get("labels")
    if labels is not None and sorted(labels.values()) != list(range(classes)):
        raise artifacts.BadDelta(
            f"{delta}: its labels are numbered {', '.join(map(str, sorted(labels.values())[:6]))} ...; expected 0 to "
            f"{classes - 1}, once each, for its {classes} classes."
        )
    if spec.task == "semantic" and spec.classes != classes:
        raise artifacts.BadDelta(
            f"{delta}: its model has {spec.classes} outputs and its metadata say {classes} classes; the file was put "
            "together from two deltas."
        )


def check_run(run: Mapping[str, Any], metadata: Mapping[str, Any], delta: Path) -> str:
    """Raise ForeignDelta unless the run (its ``config.json``) made the delta with this metadata.

    -> a sentence if the delta is too old to say which settings it was made with, "" if all was compared.
    """
    resolved = run.get("resolved")
    if not isinstance(resolved, Mapping) or "model" not in run:
        raise ForeignDelta(
            f"{delta.parent / CONFIG} is not what adapt writes; restore it, or give the delta alone with --delta."
        )
    said = {"base": run["model"], "seed": run.get("seed")}
    said |= {name: resolved.get(name) for name in RESOLVED}
    for name, ours in said.items():
        theirs = metadata.get(name)
        # In order: that of the parts of an adapter matters, and dictionaries of other orders are equal.
        ordered = name != "adapter" or json.dumps(theirs) == json.dumps(ours)
        if name in metadata and not (theirs == ours and ordered):
            raise ForeignDelta(
                f"{delta} was not made by the run it lies in: its {name} is {theirs!r:.80}, {CONFIG} says "
                f"{ours!r:.80}. Put the run's own delta back, or give this one alone with --delta."
            )
    made_with = metadata.get(SETTINGS)
    if made_with is None:
        return (
            f"{delta} does not say which settings it was made with, as deltas of earlier versions do not: one of "
            "another run with the same model, adapter and labels could not be told from it"
        )
    if made_with != settings_digest(run):
        raise ForeignDelta(
            f"{delta} was not made with the settings that {CONFIG} beside it holds: it is of another run, or {CONFIG} "
            "was changed. Put back what belongs together, or give the delta alone with --delta."
        )
    return ""


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
    options = options_of(dtype)
    if keep != "everything":
        if "remat" not in entry_of(name).options:
            raise BadConfig(
                f"Model '{name}' keeps everything for the backward pass; leave --keep {keep} out."
            )
        options["remat"] = catalog.KEEP[keep]
    if scan_blocks:
        if "scan_blocks" not in entry_of(name).options:
            raise BadConfig(f"Model '{name}' has no equal blocks to stack; leave --scan-blocks out.")
        options["scan_blocks"] = True
    if memory:
        options["memory"] = True
    options |= options_of_shape(shape)
    if "classes" in entry_of(name).options:
        options["classes"] = classes
    elif entry_of(name).complete and classes != entry_of(name).spec.classes:
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
    if not _abstract(base.params):
        model, params = transform(config, base.model, base.params)
        return Base(model, params, base.fingerprint)
    models: list[Model] = []

    def traced(params: Params) -> Params:
        model, params = transform(config, base.model, params)
        models.append(model)
        return params

    params = jax.eval_shape(traced, base.params)
    return Base(models[0], params, base.fingerprint)


def _abstract(params: Params) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))


def stored_transform(metadata: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any] | None:
    """The transform of a delta's model; files from before it was stored know prompts and classes only."""
    if "transform" in metadata:
        return metadata["transform"]
    return systems.prompt_free_on_request(spec, metadata["prompt"], metadata["classes"])


def with_adapter(base: Base, adapter: Mapping[str, Any] | None) -> AdaptedModel:
    """Put an adapter, given by its JSON configuration, around a base model; None changes nothing."""
    return adapt_model(chain() if adapter is None else from_config(adapter), base.model)


def delta_metadata(model: str, preset: str, folder: Path, dataset: Dataset) -> dict[str, Any]:
    """What the run in ``folder`` stores with its delta, from which ``load_adapted`` builds the model again.

    Its ``config.json`` decides, which a run that was continued did not write anew.  Raises RunError.
    """
    record = read_record(folder / CONFIG)
    resolved = record["resolved"]
    return {
        "base": model,
        "preset": preset,
        "seed": record["seed"],
        SETTINGS: settings_digest(record),
        "channel_names": list(dataset.channel_names),
        **{name: resolved[name] for name in RESOLVED if name in resolved},
    }
