"""A teacher: a model by name with its published weights, or the model of a run with its delta."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jax import Array

from medvfm_jax.adapters import NotMergeable
from medvfm_jax.models.catalog import MODELS, build
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import digest_files
from medvfm_jax.runs.seen_cases import Seen, seen_by
from medvfm_jax.settings.groups import PromptChoice
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import entry_of, load_base
from medvfm_jax.train.seen_at_once import stored_shape
from medvfm_jax.train.stored_delta import load_adapted
from medvfm_jax.types import ModelSpec, Params, Prediction
from medvfm_jax.weights import artifacts
from medvfm_jax.weights.registry import model_of


class Teacher(NamedTuple):
    """What a student learns from.

    Attributes:
        name: of its model.
        spec: of the model as it answers.
        params: what its functions take, {"params": ..., "delta": ...}.
        encode: (params, image, **kw) -> embedding, un-batched.
        decode: (params, embedding, prompts | None) -> Prediction.
        merged: parameters of the plain model with the delta in them, or without where it cannot be merged; None of a
            compressed run, whose file holds no such model.
        labels: {name: number} it was trained for, None where it is asked as published.
        seen: cases that it and its own teachers were trained on, of each of their data.
        tested: digest of its data, and cases of these that it has not seen, where its run does not tell which it was
            trained on (private federations), else None.
        federated: whether a federation made it, whose split no other run can draw.
        note: what should be said of it, "" for nothing.
        fingerprint: of what it answers.
    """

    name: str
    spec: ModelSpec
    params: Params
    encode: Callable[..., Array]
    decode: Callable[..., Prediction]
    merged: Params | None
    labels: Mapping[str, int] | None = None
    seen: tuple[Seen, ...] = ()
    tested: tuple[str, frozenset[str]] | None = None
    federated: bool = False
    note: str = ""
    fingerprint: str = ""


def prompt_of(teacher: str) -> PromptChoice:
    """What a teacher is asked with, before anything of it is loaded: what its run was trained with, or boxes.

    Raises MedvfmError for a teacher that is neither a run nor a model with weights.
    """
    folder = Path(teacher)
    if _is_model(teacher):
        entry_of(teacher)
        return "box"
    return run_directory.finished(folder)["resolved"]["prompt"]


def spec_before(teacher: str) -> ModelSpec:
    """What a teacher's model is without its adapter, at the size of its run, before anything of it is loaded.

    Raises MedvfmError.
    """
    name = teacher if _is_model(teacher) else run_directory.finished(Path(teacher))["model"]
    return spec_at(name, size_of(teacher))


def size_of(teacher: str) -> int | None:
    """Side in pixels of what a teacher's run was told to see (--image-size), None for its model's own size.

    Raises MedvfmError.
    """
    if _is_model(teacher):
        return None
    record, config = run_directory.finished(Path(teacher)), Path(teacher) / run_directory.CONFIG
    shape = stored_shape(record["resolved"], entry_of(record["model"]), config)
    return shape[0] if shape is not None and len(shape) == 3 else None


def spec_at(name: str, size: int | None) -> ModelSpec:
    """What a model is for pictures of ``size`` pixels; as it is for None, and where it has no size to choose."""
    entry = entry_of(name)
    if size is None or "image_size" not in entry.options:
        return entry.spec
    return build(model_of(name), image_size=size).spec


def is_compressed(teacher: str) -> bool:
    """Whether a teacher is a run whose file holds no numbers of a whole model; raises MedvfmError for no run."""
    if _is_model(teacher):
        return False
    run_directory.finished(Path(teacher))
    return artifacts.COMPRESSION in artifacts.read_metadata(Path(teacher) / run_directory.DELTA)


def open_teacher(teacher: str, *, dtype: str, weights: Path | None = None, offline: bool = False) -> Teacher:
    """Load a teacher.

    Args:
        teacher: name of a model, or a run directory.
        dtype: of its computation.
        weights: file of its base weights, if they are not published.
        offline: never touch the network.

    Raises:
        MedvfmError: no such model or run, or weights and delta that do not belong together.
    """
    folder = Path(teacher)
    if _is_model(teacher):
        entry = entry_of(teacher)
        if entry.start == "random" and weights is None:
            raise BadConfig(
                f"Model '{teacher}' starts from random weights and can teach nothing; give a run of it."
            )
        classes = entry.spec.classes
        base = load_base(teacher, classes=classes, seed=0, dtype=dtype, file=weights, offline=offline)
        model = base.model
        return Teacher(
            teacher,
            model.spec,
            base.params,
            model.encode,
            model.decode,
            base.params,
            fingerprint=base.fingerprint,
        )
    record = run_directory.finished(folder)
    path = folder / run_directory.DELTA
    loaded = load_adapted(path, model=None, dtype=dtype, file=weights, offline=offline, run=record)
    adapted, resolved = loaded.adapted, record["resolved"]
    split, federated = resolved["split"], "rounds" in record
    params = {"params": loaded.base.params, "delta": loaded.delta}
    note = ""
    try:
        merged = adapted.merge(loaded.base.params, loaded.delta)
    except NotMergeable as error:
        merged = loaded.base.params
        note = f"the student starts from {record['model']} without the delta: {error}"
    if artifacts.COMPRESSION in loaded.metadata:
        merged, note = None, f"{folder} is compressed, so the whole student starts at random, its decoder too"
    return Teacher(
        record["model"],
        adapted.spec,
        params,
        lambda p, image, **kw: adapted.encode(p["params"], p["delta"], image, **kw),
        lambda p, embedding, prompts: adapted.decode(p["params"], p["delta"], embedding, prompts),
        merged,
        resolved["labels"],
        seen_by(record),
        (resolved["data_sha256"], frozenset(split["test"])) if federated and not split["train"] else None,
        federated,
        note,
        f"{loaded.base.fingerprint} {digest_files([path])}",
    )


def _is_model(teacher: str) -> bool:
    """Whether a name is that of a model, known or not; raises BadConfig for a path that leads nowhere."""
    folder = Path(teacher)
    if len(folder.parts) > 1 and not folder.is_dir():
        raise BadConfig(
            f"There is no run directory {teacher}; give one that adapt or distill has made, or a model."
        )
    return teacher in MODELS or not folder.is_dir()
