"""The ``Segmenter`` of published weights, a delta file, a run directory, or several runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvfm_jax import local_paths
from medvfm_jax.predict.ensemble import Member, check_member
from medvfm_jax.predict.ready import Ready, loaded_alone, ready, without_delta
from medvfm_jax.predict.segment import Segmenter
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.settings.runtime import RuntimeName

if TYPE_CHECKING:
    from medvfm_jax.predict.brain_extraction import BrainExtractor


def load_segmenter(
    model: str | None = None,
    delta: Path | None = None,
    *,
    run: Path | None = None,
    ensemble: Sequence[Path] = (),
    weights: Path | None = None,
    dtype: str = "float32",
    offline: bool = False,
    multimask: bool = False,
    say: Callable[[str], None] = lambda text: None,
    overlap: float | None = None,
    propagate: bool = False,
    runtime: RuntimeName = "jax",
    task: str | None = None,
) -> Segmenter:
    """Load a pretrained model, alone (zero-shot) or with the delta of a file or a run directory.

    Args:
        model: name in the catalogue; may be left out with a delta or a run.
        delta: delta file.
        run: run directory, which knows its model, weights and number format.
        weights: file of the base weights; by default the registered ones.
        dtype: number format of the computation.
        offline: download nothing.
        multimask: of the three masks SAM offers for an ambiguous prompt, take the one it rates best.
        say: see ``Segmenter``.
        overlap: share by which neighbouring windows of a volume, or tiles of a picture, overlap; None: half of one.
        ensemble: folders of more runs, whose probabilities are averaged with those of ``run``.
        propagate: objects prompted on one slice of a volume are followed through all slices; models with memory only.
        runtime: what encodes pictures, see ``export.frozen_encoder``; what decodes stays in JAX.
        task: site whose task the images are of, of a delta that knows several.

    Returns:
        Segmenter that predicts pictures and volumes.

    Raises:
        BadConfig: nothing to load, or a model that gives no masks without a delta, or runs that do not belong together,
            or an encoder that JAX alone can run.
        CannotExport: see ``export.frozen_encoder``.
        RunError: a run that has not ended.
        TaskUnknown: a delta that knows several tasks without one, or a task that it does not know.
    """
    for path in (run, delta, weights):
        if path is not None:
            local_paths.check(path)
    if propagate:
        _check_propagation(model, delta, run)
    if runtime != "jax" and (propagate or ensemble):
        what = "--propagate follows objects" if propagate else "The runs of an ensemble are encoded"
        raise BadConfig(f"{what} in JAX; leave out --runtime.")
    record = propagator = extractor = None
    if run is not None:
        record = run_directory.finished(run)
        delta, dtype = run / run_directory.DELTA, record["dtype"]
        weights = weights or (record["weights"] and Path(record["weights"]))
    elif ensemble:
        raise BadConfig("An ensemble is made of runs: give one with --run and the others with --ensemble.")
    if delta is not None:
        from medvfm_jax.train.stored_delta import load_adapted

        loaded = load_adapted(
            delta, model=model, dtype=dtype, file=weights, offline=offline, run=record, task=task
        )
        found = ready(loaded)
    elif task is not None:
        raise BadConfig(
            f"Published weights know no task '{task}'; leave --task out, or give --run or --delta."
        )
    elif model is None:
        raise BadConfig("Segmenting needs --run RUN, --delta FILE or --model NAME.")
    elif propagate:
        from medvfm_jax.predict.propagation import Propagator  # imports flax

        loaded = loaded_alone(model, dtype, weights, offline, memory=True)
        found, propagator = ready(loaded), Propagator(loaded.base.model, loaded.base.params)
    elif runtime != "jax":
        loaded = loaded_alone(model, dtype, weights, offline)
        found = ready(loaded)
        extractor = _extractor(model, found, dtype, offline, say)
    else:
        found = without_delta(model, dtype=dtype, file=weights, offline=offline)
        extractor = _extractor(model, found, dtype, offline, say)
    if extractor is not None and overlap is not None:
        raise BadConfig(
            f"{model} sees a volume as a whole, without windows that overlap; leave out --overlap."
        )
    if multimask and found.spec.task != "promptable":
        raise BadConfig(
            "This delta segments without prompts and gives one mask per class; leave out --multimask."
        )
    encoder = None
    if runtime != "jax":
        from medvfm_jax.export.frozen_encoder import frozen_encoder  # imports flax

        base = loaded.base
        encoder = frozen_encoder(runtime, base.model, base.params, loaded.adapted, loaded.delta, say)
    largest: tuple[int, ...] = ()
    if run is not None and found.metadata and found.metadata["prompt"] == "none":
        largest = _chosen(run, found.metadata)
    first, others = Member(found.spec, found.preparation, found.metadata or {}), []
    for folder in ensemble:
        other = load_segmenter(run=folder, offline=offline, overlap=overlap, say=say)
        check_member(folder, other.member, first)
        others.append(other)
    return Segmenter(
        found,
        multimask=multimask,
        overlap=overlap,
        say=say,
        propagator=propagator,
        largest=largest,
        others=others,
        extractor=extractor,
        encoder=encoder,
    )


def _extractor(
    model: str, found: Ready, dtype: str, offline: bool, say: Callable[[str], None]
) -> "BrainExtractor | None":
    """The two networks of a model that another one tells where to look; None for other models."""
    from medvfm_jax.models.catalog import MODELS
    from medvfm_jax.train.base_model import entry_of

    localiser = entry_of(model).localiser
    if not localiser:
        helped = [name for name, entry in MODELS.items() if entry.localiser == model]
        if helped:
            raise BadConfig(f"{model} only finds where {helped[0]} looks; take --model {helped[0]}.")
        return None
    from medvfm_jax.predict.brain_extraction import BrainExtractor

    return BrainExtractor(without_delta(localiser, dtype=dtype, file=None, offline=offline), found, say)


def _chosen(run: Path, metadata: Mapping[str, Any]) -> tuple[int, ...]:
    if not (run / run_directory.LARGEST).exists():
        return ()
    from medvfm_jax.predict.largest_component import chosen

    return chosen(run, metadata.get("labels", {}))


def _check_propagation(model: str | None, delta: Path | None, run: Path | None) -> None:
    """Raise BadConfig unless a pretrained model with a memory, without a delta, is to follow objects."""
    from medvfm_jax.train.base_model import entry_of

    if delta is not None or run is not None:
        raise BadConfig(
            "Objects are followed by a pretrained model without a delta: leave --run and --delta out, or --propagate."
        )
    if model is not None and "memory" not in entry_of(model).options:
        raise BadConfig(f"{model} has no memory to follow objects with; take a SAM 2, such as sam2-tiny.")
