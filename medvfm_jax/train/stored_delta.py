"""A delta file and the model it was made for; what a run stores with its delta, so that both are found again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medvfm_jax import systems, traces
from medvfm_jax.adapters import (
    AdaptedModel,
)
from medvfm_jax.adapters.task_tables import of_task, tasks_of
from medvfm_jax.data import Dataset
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation
from medvfm_jax.runs.run_directory import CONFIG, read_record
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.train.base_model import Base, entry_of, load_base, model_shapes, transformed, with_adapter
from medvfm_jax.train.preparation import PREPARATION, stored_preparation
from medvfm_jax.train.seen_at_once import (
    stored_shape,
)
from medvfm_jax.types import Delta, MedvfmError, ModelSpec
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

EVERY_TASK = ""  # instead of the name of a site: the delta with the tables of all tasks


class TaskUnknown(MedvfmError, ValueError):
    """A model that knows several tasks was not told which one, or one that it does not know."""


class ForeignDelta(MedvfmError):
    """A run directory holds a delta that its run did not make."""


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
        own = metadata["fingerprint"]
        base = model_shapes(name, classes=classes, dtype=dtype, shape=shape, fingerprint=own)
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


def stored_transform(metadata: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any] | None:
    """The transform of a delta's model; files from before it was stored know prompts and classes only."""
    if "transform" in metadata:
        return metadata["transform"]
    return systems.prompt_free_on_request(spec, metadata["prompt"], metadata["classes"])


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
