"""Predict and score cases one after the other, and write the scores with what made them."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax.adapters import count
from medvfm_jax.data import Case, Dataset, LoadedCase, read_case
from medvfm_jax.data.annotated_labels import unannotated
from medvfm_jax.data.check import DatasetCheck
from medvfm_jax.data.names import file_of
from medvfm_jax.data.objects import objects_of
from medvfm_jax.images import read_labels, write_mask
from medvfm_jax.metrics import score_case, summarise
from medvfm_jax.predict import largest_component, runtime_check
from medvfm_jax.predict.case_prediction import predict_case
from medvfm_jax.predict.ensemble import EnsemblePredictor
from medvfm_jax.predict.overlay_cases import write_overlays
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.predict.score_files import beside
from medvfm_jax.predict.subject import Subject
from medvfm_jax.predict.volume_prediction import resolved_overlap
from medvfm_jax.runs import run_directory, staging
from medvfm_jax.runs.progress import tracked
from medvfm_jax.runs.provenance import provenance
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.train.training_data import SplitData
from medvfm_jax.types import ModelSpec
from medvfm_jax.weights import artifacts

FORMAT = 1


def score_cases(
    config: EvaluateConfig,
    out: Path,
    source: SplitData,
    cases: list[Case],
    checked: DatasetCheck,
    subject: Subject,
    predictor_of: Callable[[Case], Predictor | EnsemblePredictor],
    console: Console,
    models: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Predict and score cases, each with the predictor chosen for it; write the scores, return them with "file".

    predictor_of: a federation has sites with models of their own; ``subject`` says what all of them are.
    models: {case: name of the model that predicts it}, recorded as "scored_by" where there are several.
    """
    rows, was_killed = [], staging.is_left_over(out)
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(staging.staged(out)) if config.save_predictions else None
        if was_killed:
            console.print(
                f"an evaluation for {out} was killed; it is made anew", markup=False, soft_wrap=True
            )
        comparison = largest_component.Comparison(source.dataset.labels) if config.choose_largest else None
        asked = config.check_runtime if config.check_runtime is not None else runtime_check.USUAL_CASES
        against = runtime_check.RuntimeCheck([case.id for case in cases], asked * (config.runtime != "jax"))
        predictions = stage and stage / beside(out, "predictions").name
        for case in tracked(cases, "evaluate", console):
            loaded = read_case(source.dataset, case)
            about_case, predictor = (config, subject, source.dataset, loaded), predictor_of(case)
            found = _score(*about_case, predictor, predictions, comparison)
            if case.id in against.names:
                against.add(found, _score(*about_case, predictor.in_jax(), None, None))
            rows += found
        if against.names:
            checked_runtime = against.record()
            console.print(
                runtime_check.in_words(checked_runtime, config.runtime), markup=False, soft_wrap=True
            )
            runtime = subject.record["runtime"] | checked_runtime
            subject = subject._replace(record={**subject.record, "runtime": runtime})
        scores = _scores(config, subject, source, rows, checked)
        if models is not None:
            scores["scored_by"] = dict(models)
        if stage is not None:
            scores["predictions"] = predictions.name
            scores["overlays"] = write_overlays(
                stage / beside(out, "overlays").name,
                source.dataset,
                rows,
                lambda name: reread(source.dataset, name, predictions),
            )
            # Before anything is moved: where the disk is full, nothing is in place that belongs to no scores.
            run_directory.write_json(stage / out.name, scores)
            staging.publish(stage, out)
        else:
            run_directory.write_json(out, scores)
    if comparison is not None:
        record = comparison.record(config.run / run_directory.DELTA)
        run_directory.write_json(config.run / run_directory.LARGEST, record)
        kept = ", ".join(record["largest"]) or "no label"
        console.print(f"the largest component alone is kept of {kept}", markup=False, soft_wrap=True)
    return run_directory.finite(scores) | {"file": str(out)}


def _score(
    config: EvaluateConfig,
    subject: Subject,
    dataset: Dataset,
    case: LoadedCase,
    predictor: Predictor | EnsemblePredictor,
    folder: Path | None,
    comparison: largest_component.Comparison | None,
) -> list[dict[str, Any]]:
    overlap = resolved_overlap(subject.adapted.spec, config.overlap)
    predicted = predict_case(predictor, dataset, case, subject.prompt, config.seed, overlap)
    if comparison is not None:
        comparison.add(case.label, predicted.labels)
    if subject.largest:
        predicted = predicted._replace(
            labels=largest_component.keep_largest(predicted.labels, subject.largest)
        )
    instances = case.instances
    if instances is not None and predicted.instances is not None:
        instances = (instances, predicted.instances)
    rows = score_case(
        case.label,
        predicted.labels,
        dict(dataset.labels),
        case.image.spacing,
        config.profile,
        instances=instances,
    )
    if folder is not None:
        values = np.asarray(dataset.values)[predicted.labels]
        write_mask(_file(folder, case.case, dataset), values, case.image)
        if predicted.instances is not None and subject.prompt == "none":
            write_mask(_file(folder / "instances", case.case, dataset), predicted.instances, case.image)
    # What the site did not look for and its file has nothing of is unknown there, not absent.
    values = [v for v in unannotated(dataset, case.case) if not (case.label == v).any()]
    unknown = _names(dataset, tuple(values))
    rows = [row for row in rows if row["label"] not in unknown]
    who = {"case": case.case.id, "patient": case.case.patient, "site": case.case.site}
    return [who | row for row in rows]


def _prompt_source(subject: Subject) -> str | None:
    if subject.prompt == "none":
        return None
    return "the reference of each slice" if subject.adapted.spec.rank == 2 else "the reference of each volume"


def _tiles(config: EvaluateConfig, spec: ModelSpec) -> dict[str, Any]:
    """How pictures were cut into tiles, for the record; nothing where they were not."""
    if spec.tile is None:
        return {}
    return {"tile": spec.tile, "overlap": resolved_overlap(spec, config.overlap)}


def _names(dataset: Dataset, classes: tuple[int, ...]) -> list[str]:
    return [name for name, value in dataset.labels.items() if value in classes]


def _file(folder: Path, case: Case, dataset: Dataset) -> Path:
    return file_of(folder, case.id, ".nii.gz" if dataset.dimension == 3 else ".png")


def reread(dataset: Dataset, name: str, folder: Path) -> tuple[LoadedCase, NDArray]:
    """A case and the class indices that an evaluation wrote into ``folder`` for it."""
    case = read_case(dataset, name)
    raw = read_labels(_file(folder, case.case, dataset)).array[..., 0]
    indices = np.zeros(max(dataset.values) + 1, np.int32)
    indices[list(dataset.values)] = np.arange(len(dataset.values))
    return case, indices[raw]


def _scores(
    config: EvaluateConfig,
    subject: Subject,
    source: SplitData,
    rows: list[dict[str, Any]],
    checked: DatasetCheck,
) -> dict[str, Any]:
    size = count(subject.delta, subject.base.params)
    compression = (subject.metadata or {}).get(artifacts.COMPRESSION)
    trained = None
    if subject.delta and compression is None:
        trained = {"parameters": size.trained, "total": size.total, "bytes": size.bytes}
    return {
        "format": FORMAT,
        "metric_profile": config.profile,
        "unit": "patient",
        "split": config.split,
        "model": subject.name if subject.adapter is None else f"{subject.name} + {subject.adapter}",
        "prompt": subject.prompt,
        "prompt_source": _prompt_source(subject),
        "objects": None if subject.prompt == "none" else objects_of(source.dataset),
        "flips": config.flips,
        **({} if subject.adapted.spec.rank == 2 else {"window": list(subject.adapted.spec.input_shape[:-1])}),
        **_tiles(config, subject.adapted.spec),
        **({"largest_component": _names(source.dataset, subject.largest)} if subject.largest else {}),
        **({"ensemble": [str(config.run), *map(str, config.ensemble)]} if config.ensemble else {}),
        **subject.record,
        **({} if compression is None else {artifacts.COMPRESSION: dict(compression)}),
        "data": source.dataset.name,
        "licence": source.dataset.licence,
        "note": source.dataset.note,
        **summarise(rows, seed=config.seed),
        "cases": rows,
        "overlays": [],
        "skipped": [{"case": case, "why": why} for case, why in checked.bad_cases().items()],
        "checked": checked.record(),
        "provenance": provenance(
            seed=config.seed,
            weights_sha256=subject.base.fingerprint,
            data_sha256=source.sha256,
            trained=trained,
        ),
    }
