"""What is exported: a model with its weights, merged or beside its adapter, and what is known of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax import Array

from medvfm_jax.adapters import NotMergeable
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.fetch import sha256_of
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.export import ExportConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import entry_of, load_base, spec_of
from medvfm_jax.train.stored_delta import Loaded, load_adapted
from medvfm_jax.types import ModelSpec, Prediction
from medvfm_jax.weights import artifacts

ROUNDING = ("integer_inputs", "integer_products", "grouped_inputs")  # kinds of adapters


class Subject(NamedTuple):
    """A model as functions of one image, its weights within.

    encode, decode, apply: as those of ``Model``, without parameters; ``reference`` has the same three as `segment`
    calls them: with the adapter beside the weights.  rounds: whether activations are rounded to steps, so that one
    half-way between two may become either.
    """

    spec: ModelSpec
    encode: Callable[[Array], Array]
    decode: Callable[..., Prediction]
    apply: Callable[[Array], Prediction]
    reference: "tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]"
    metadata: Mapping[str, Any]
    provenance: Mapping[str, Any]
    scores: Mapping[str, Any] | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    rounds: bool = False


def subject(config: ExportConfig) -> Subject:
    """Load what is to be exported.

    Args:
        config: what was asked for.

    Returns:
        The subject.

    Raises:
        CannotExport: a model of volumes or tiles, with a distance map, or an adapter that cannot be merged.
        BadConfig: a model that gives no masks.
        RunError: a run that has not ended.
    """
    record = None if config.run is None else run_directory.finished(config.run)
    delta = config.delta if config.run is None else config.run / run_directory.DELTA
    file = config.weights or (Path(record["weights"]) if record and record["weights"] else None)
    if delta is None:
        return _published(config, file)
    loaded = load_adapted(
        delta, model=config.model, dtype="float32", file=file, offline=config.offline, run=record
    )
    _check(loaded.base.model.spec)
    options = _masks(config, loaded.base.model.spec)
    params, arrays, adapted, model = loaded.base.params, loaded.delta, loaded.adapted, loaded.base.model
    reference = (
        lambda image: adapted.encode(params, arrays, image),
        lambda embedding, prompts: adapted.decode(params, arrays, embedding, prompts, **options),
        lambda image: adapted.apply(params, arrays, image, None),
    )
    functions = reference
    if not config.unmerged:
        try:
            merged = adapted.merge(params, arrays)
        except NotMergeable as error:
            raise CannotExport(
                f"This adapter cannot be folded into the weights ({str(error).rstrip('.')}); add --unmerged to export "
                "it beside them, with the same results."
            ) from error
        functions = (
            lambda image: model.encode(merged, image),
            lambda embedding, prompts: model.decode(merged, embedding, prompts, **options),
            lambda image: model.apply(merged, image, None),
        )
    notes, warnings = _what_is_left_out(config, loaded)
    said = {
        "base": loaded.metadata["base"],
        "base_fingerprint": loaded.metadata["fingerprint"],
        "delta_sha256": sha256_of(delta),
        "merged": not config.unmerged,
    }
    scores = None if config.run is None else _scores(config.run)
    rounds = rounds_activations(adapted.adapter.config)
    return Subject(model.spec, *functions, reference, loaded.metadata, said, scores, notes, warnings, rounds)


def rounds_activations(config: Mapping[str, Any]) -> bool:
    """Whether an adapter, or a part of a chain, rounds what enters modules or products of attention."""
    if config.get("kind") in ROUNDING:
        return True
    return any(rounds_activations(part) for part in (config.get("parts") or {}).values())


def _published(config: ExportConfig, file: Path | None) -> Subject:
    """A model as it was published."""
    name = str(config.model)
    entry = entry_of(name)
    if not entry.complete and spec_of(name).task != "promptable":
        raise BadConfig(f"{name} without a delta gives no masks; adapt it first and export its run.")
    if entry.start == "random" and file is None:
        raise BadConfig(
            f"{name} starts from random weights; train it first and export its run, or give --weights."
        )
    _check(entry.spec)
    options = _masks(config, entry.spec)
    base = load_base(
        name, classes=entry.spec.classes, seed=0, dtype="float32", file=file, offline=config.offline
    )
    model, params = base.model, base.params
    functions = (
        lambda image: model.encode(params, image),
        lambda embedding, prompts: model.decode(params, embedding, prompts, **options),
        lambda image: model.apply(params, image, None),
    )
    said = {"base": name, "base_fingerprint": base.fingerprint, "delta_sha256": None, "merged": False}
    return Subject(model.spec, *functions, functions, {}, said, None, (), ())


def _check(spec: ModelSpec) -> None:
    """Raise CannotExport for models whose predictions are more than one call of a network."""
    if spec.rank == 3:
        raise CannotExport(
            f"{spec.name} sees volumes, whose windows a bundle cannot blend yet; export a model of pictures."
        )
    if spec.tile is not None:
        raise CannotExport(
            f"{spec.name} sees pictures in tiles, which a bundle cannot blend yet; export a model that sees them whole."
        )
    if spec.distance_map:
        raise CannotExport(
            f"{spec.name} tells objects apart by a distance map, which takes a watershed that a bundle does not have; "
            "export a model of classes or prompts."
        )


def _masks(config: ExportConfig, spec: ModelSpec) -> dict[str, Any]:
    if spec.task == "promptable":
        return {"multimask": True} if config.multimask else {}
    if config.multimask or config.slots is not None:
        raise BadConfig("This model takes no prompts; leave out --multimask and --slots.")
    return {}


def _what_is_left_out(config: ExportConfig, loaded: Loaded) -> tuple[tuple[str, ...], tuple[str, ...]]:
    notes, warnings = [], [loaded.note] if loaded.note else []
    if config.run is not None and (config.run / run_directory.LARGEST).exists():
        notes.append(
            "`segment` keeps the largest component of some classes of this run; this bundle keeps all."
        )
        warnings.append(notes[-1])
    if config.run is not None and (config.run / run_directory.PERSONAL).exists():
        notes.append(
            "This is the shared model of a federation; what each site keeps for itself is not in it."
        )
        warnings.append(notes[-1])
    if lost := _lost(loaded.metadata.get(artifacts.COMPRESSION), config.unmerged):
        notes.append(lost)
        warnings.append(lost)
    names = loaded.metadata.get("channel_names") or ()
    if names:
        notes.append(f"Trained on the channels {', '.join(names)}.")
    if any(name.strip().lower() == "ct" for name in names):
        notes.append(
            "Slices of CT: give them as `segment` sees them, clipped to the window and scaled to 0..1."
        )
    return tuple(notes), tuple(warnings)


def _lost(compression: Mapping[str, Any] | None, unmerged: bool) -> str:
    """What the files do not keep of a compression, in words."""
    method = (compression or {}).get("method")
    if method == "low_rank" and not unmerged:
        return "low_rank: the thin layers of this run are multiplied into whole ones here; --unmerged keeps them thin."
    if "bits" in (compression or {}):
        return f"{method}: the integers of this run are weights of 32 bits here; --int8 writes weights of 8 bits."
    return ""


def _scores(run: Path) -> dict[str, Any] | None:
    """What `evaluate` found, without the single cases."""
    path = run / run_directory.SCORES
    if not path.is_file():
        return None
    record = run_directory.read_record(path)
    return {name: value for name, value in record.items() if name not in ("cases", "provenance")}
