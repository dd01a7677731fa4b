"""What `evaluate` scores: a model with the delta of a run or a file, or a pretrained one as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from medvfm_jax.adapters import AdaptedModel
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation, of_record
from medvfm_jax.predict import largest_component
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.assemble import check_prompts
from medvfm_jax.train.base_model import Base, entry_of, load_base, spec_of, with_adapter
from medvfm_jax.train.preparation import check_same_scale
from medvfm_jax.train.stored_delta import EVERY_TASK, load_adapted
from medvfm_jax.train.training_data import SplitData
from medvfm_jax.types import Delta
from medvfm_jax.weights import artifacts


class LabelsDiffer(BadConfig):
    """A model with one output per label meets data with other labels."""


class Subject(NamedTuple):
    """What is scored: a model with a delta (empty for zero-shot), and how it was made.

    preparation: of volumes, as in training. largest: classes of which the largest component alone is kept.
    metadata: of the delta. record: more about how it was made, for the scores.
    """

    name: str
    adapter: str | None
    base: Base
    adapted: AdaptedModel
    delta: Delta
    prompt: str
    preparation: Preparation = AS_THEY_ARE
    largest: tuple[int, ...] = ()
    metadata: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = {}


def open_subject(
    config: EvaluateConfig, run: Mapping[str, Any] | None, source: SplitData, console: Console
) -> Subject:
    """Load what is to be scored on these data; raises BadConfig where they do not go together, and what loading does.

    run: record of ``config.run``.
    """
    file = config.delta if run is None else config.run / run_directory.DELTA
    if file is None:
        return _as_it_is(config, source)
    weights = config.weights or (run and run["weights"] and Path(run["weights"]))
    dtype = config.dtype if run is None else run["dtype"]
    loaded = load_adapted(
        file,
        model=config.model,
        dtype=dtype,
        file=weights,
        offline=config.offline,
        run=run,
        task=EVERY_TASK,
    )
    if loaded.note:
        console.print(f"warning: {loaded.note}", markup=False, soft_wrap=True)
    metadata = loaded.metadata
    artifacts.require(metadata, ("labels", "preset"), file)
    prompt = _prompt(config, metadata["prompt"])
    check_prompts(loaded.base.model.spec, prompt)
    if prompt == "none" and metadata["labels"] != dict(source.dataset.labels):
        trained = sorted(metadata["labels"], key=metadata["labels"].get)
        raise LabelsDiffer(
            f"The model was trained on the labels {', '.join(trained)}; {source.dataset.folder} has "
            f"{', '.join(source.dataset.labels)}. Rename them in the dataset so that they agree."
        )
    trained_on, channels = metadata.get("channel_names", ()), source.dataset.channel_names
    counts = (
        source.dataset.dimension == 3 or len(trained_on) > 1
    )  # grey pictures and coloured ones are one kind
    if trained_on and channels and counts and len(trained_on) != len(channels):
        raise BadConfig(
            f"The delta was trained on {counted(len(trained_on), 'channel')} ({', '.join(trained_on)}); "
            f"{source.dataset.folder} has {len(channels)} ({', '.join(channels)})."
        )
    check_same_scale(trained_on, channels, source.dataset.folder)
    largest: tuple[int, ...] = ()
    if config.choose_largest and prompt != "none":
        raise BadConfig("--choose-largest is about models without prompts; this run was trained with some.")
    if config.choose_largest and loaded.base.model.spec.distance_map:
        raise BadConfig(
            "--choose-largest is about classes; this run tells instances apart, which are many of a class."
        )
    if run is not None and prompt == "none" and not config.choose_largest:
        largest = largest_component.chosen(config.run, metadata["labels"])
    name = config.model or metadata["base"]
    return Subject(
        name,
        metadata["preset"],
        loaded.base,
        loaded.adapted,
        loaded.delta,
        prompt,
        loaded.preparation,
        largest,
        metadata,
    )


def _as_it_is(config: EvaluateConfig, source: SplitData) -> Subject:
    spec = spec_of(config.model)
    usual = "point" if spec.prompts == ("point",) else "box"
    prompt = usual if config.prompt == "auto" else config.prompt
    check_prompts(spec, prompt)
    base = load_base(
        config.model,
        classes=source.dataset.classes,
        seed=config.seed,
        dtype=config.dtype,
        file=config.weights,
        offline=config.offline,
    )
    if base.model.spec.task != "promptable" or prompt == "none":
        raise BadConfig(
            f"{config.model} without a delta gives no class labels: adapt it first, or use box prompts."
        )
    preparation = of_record(entry_of(config.model).preparation)
    return Subject(config.model, None, base, with_adapter(base, None), {}, prompt, preparation)


def _prompt(config: EvaluateConfig, trained: str) -> str:
    if config.prompt == "auto":
        return "box" if trained == "mixed" else trained
    if (config.prompt == "none") != (trained == "none"):
        raise BadConfig(
            f"The delta was trained with prompt={trained}; it cannot be scored with {config.prompt}."
        )
    return config.prompt
