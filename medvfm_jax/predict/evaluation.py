"""`evaluate`: scores of a run, or of a pretrained model zero-shot, on whole cases, with patient-level intervals."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax.adapters import count, touches_encoder
from medvfm_jax.adapters.task_tables import tasks_of
from medvfm_jax.data import Case, Dataset, LoadedCase, read_case
from medvfm_jax.data.annotated_labels import unannotated
from medvfm_jax.data.check import DatasetCheck, check_dataset
from medvfm_jax.data.dataset import same_source
from medvfm_jax.data.findings import Finding
from medvfm_jax.data.names import file_of
from medvfm_jax.data.objects import as_before, objects_of
from medvfm_jax.export.frozen_encoder import frozen_encoder
from medvfm_jax.images import read_labels, write_mask
from medvfm_jax.local_paths import file_word
from medvfm_jax.metrics import profiles, score_case, summarise
from medvfm_jax.predict import largest_component, runtime_check
from medvfm_jax.predict.case_prediction import predict_case
from medvfm_jax.predict.case_task import by_task
from medvfm_jax.predict.ensemble import EnsemblePredictor, Member, check_member
from medvfm_jax.predict.overlay_cases import write_overlays
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.predict.score_files import beside, refuse_foreign
from medvfm_jax.predict.subject import Subject, open_subject
from medvfm_jax.predict.volume_prediction import resolved_overlap
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory, staging
from medvfm_jax.runs.progress import tracked
from medvfm_jax.runs.provenance import provenance
from medvfm_jax.runs.seen_cases import of_data, seen_by
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.data_check import about, lines, refuse_bad
from medvfm_jax.train.stored_delta import load_adapted
from medvfm_jax.train.training_data import SplitData, open_split
from medvfm_jax.types import ModelSpec
from medvfm_jax.weights import artifacts

FORMAT = 1


class Choice(NamedTuple):
    """The predictor of a case, and a name for its model."""

    predictor: Predictor
    model: str


class Sites(NamedTuple):
    """How a run of several sites is evaluated; ``federated.run.evaluate_sites`` has it.

    data(config, run) -> the run's own data, divided among its sites.
    choose(config, run, subject, shared) -> case -> the model that its site uses, None if all use the shared one.
    """

    data: Callable[[EvaluateConfig, Mapping[str, Any]], SplitData]
    choose: Callable[[EvaluateConfig, Mapping[str, Any], Subject, Predictor], Callable[[Case], Choice] | None]


def evaluate(
    config: EvaluateConfig, console: Console | None = None, sites: Sites | None = None
) -> dict[str, Any]:
    """Predict whole cases on their own grid, score them with patient-level intervals, and write scores.json.

    Args:
        config: settings.
        console: shows progress and the table.
        sites: of a federated run, from ``federated.run.evaluate_sites``; without, every case is predicted with the
            shared model.

    Returns:
        What was written, and where: "file".

    Raises:
        BadConfig: settings that contradict each other or the model.
        MedvfmError: data (all cases are read before the first prediction), weights, a delta made for other weights.
    """
    console = console or Console(stderr=True, highlight=False)
    profiles.get(config.profile)
    run = _run_record(config)
    sites = sites if run is not None and "rounds" in run else None
    if sites is None and run is not None and (config.run / run_directory.PERSONAL).is_file():
        console.print("warning: every case is scored with the shared model, none with that of its site")
    source = _data(config, run, sites)
    if _same_data(config, run) and run["resolved"]["data_sha256"] != source.sha256:
        console.print("warning: the files of the dataset are not those the run was trained on", markup=False)
    out = scores_path(config, source, run)
    # In a run directory the names are ours.
    refuse_foreign(out, config.save_predictions and config.out is not None)
    names = getattr(source.split, config.split) if config.split != "all" else sorted(source.dataset.by_id)
    cases, checked = readable(source.dataset, names, config, console)
    subject = open_subject(config, run, source, console)
    source = source._replace(dataset=replace(source.dataset, preparation=subject.preparation))
    overlap = resolved_overlap(subject.adapted.spec, config.overlap)
    if subject.adapted.spec.rank == 3 and source.dataset.dimension == 2:
        raise BadConfig(
            f"{source.dataset.folder} has pictures; {subject.name} was trained to segment volumes."
        )
    if (
        subject.adapted.spec.rank == 3
        and subject.prompt != "none"
        and (config.flips or config.overlap is not None)
    ):
        option = "--flips" if config.flips else "--overlap"
        raise BadConfig(
            f"{subject.name} is asked about each object in one window, as it is; leave out {option}."
        )
    checked = about(checked, subject.prompt, subject.adapted.spec, subject.preparation)
    if run is not None and config.split in ("test", "all"):
        checked = checked._replace(findings=(*checked.findings, *_seen_before(run, source.sha256, cases)))
    if "point" in subject.prompt and "point" not in subject.base.model.spec.prompts and not subject.delta:
        console.print(f"warning: {subject.name} was not trained with point prompts; scores will be poor")
    run_directory.make_folder(out.parent)
    for line in lines(checked):
        console.print(line, markup=False, soft_wrap=True)
    adapter = subject.adapted.adapter.config
    if config.runtime != "jax" and tasks_of(adapter) and touches_encoder(subject.delta):
        raise BadConfig(
            "Every task has an encoder of its own here, which JAX alone can run; leave out --runtime."
        )
    encoder = frozen_encoder(
        config.runtime,
        subject.base.model,
        subject.base.params,
        subject.adapted,
        subject.delta,
        lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    if encoder is not None:
        subject = subject._replace(record={**subject.record, "runtime": dict(encoder.record)})
    asked = {"flips": config.flips, "overlap": overlap, "encoder": encoder}
    predictor = Predictor(subject.adapted, subject.base.params, subject.delta, **asked)
    if config.ensemble:
        predictor = _ensemble(config, subject, predictor, cases, console)
    choose = None if sites is None else sites.choose(config, run, subject, predictor)
    if choose is None:
        of_case = by_task(lambda case: predictor, adapter, config.task)
        return score_cases(config, out, source, cases, checked, subject, of_case, console)
    for site, model in sorted({case.site: choose(case).model for case in cases}.items()):
        console.print(f"{site}: scored with {model}", markup=False, soft_wrap=True)
    names = {case.id: choose(case).model for case in cases}
    of_case = by_task(lambda case: choose(case).predictor, adapter, config.task)
    return score_cases(config, out, source, cases, checked, subject, of_case, console, names)


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


def scores_path(config: EvaluateConfig, source: SplitData, run: Mapping[str, Any] | None) -> Path:
    """Where the scores go: --out, RUN/scores.json, or runs/MODEL_DATA/scores.json for a zero-shot model.

    Another split or dataset than a run's own gets a name of its own.
    """
    if config.out is not None:
        return config.out
    if config.run is None:
        return Path("runs") / f"{config.model}_{file_word(source.dataset.name)}" / run_directory.SCORES
    own = _same_data(config, run)
    words = [
        "scores",
        *([] if own else [file_word(source.dataset.name)]),
        *([] if config.split == "test" else [config.split]),
    ]
    return config.run / f"{'_'.join(words)}.json"


def _run_record(config: EvaluateConfig) -> dict[str, Any] | None:
    return None if config.run is None else run_directory.finished(config.run)


def _same_data(config: EvaluateConfig, run: Mapping[str, Any] | None) -> bool:
    if run is None:
        return False
    return config.data is None or same_source(config.data, run["resolved"]["data"])


def _data(config: EvaluateConfig, run: Mapping[str, Any] | None, sites: Sites | None) -> SplitData:
    own = _same_data(config, run)
    if own and sites is not None:
        return _as_recorded(config, run["resolved"], sites.data(config, run))
    source = open_split(
        config.data if config.data is not None else run["resolved"]["data"],
        seed=config.seed,
        val=config.val_fraction,
        test=config.test_fraction,
        offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch or (allowed_mismatch(run) if own else 0.0),
        follow_links=config.follow_links or (own and run.get("follow_links", False)),
        objects=config.objects or (own and run["resolved"].get("objects")) or None,
        given=run["resolved"]["split"] if own else None,
        annotated=run.get("annotated", ()) if own else (),
    )
    return _as_recorded(config, run["resolved"], source) if own else source


def _as_recorded(config: EvaluateConfig, resolved: Mapping[str, Any], source: SplitData) -> SplitData:
    """The data of a run with objects as they were before runs recorded what they are."""
    if config.objects is None and not resolved.get("objects") and resolved.get("prompt") != "none":
        return source._replace(dataset=as_before(source.dataset))
    return source


def allowed_mismatch(run: Mapping[str, Any]) -> float:
    """Millimetres a run allowed; records from before the option had a number say true for any distance."""
    recorded = run.get("allow_geometry_mismatch", 0.0)
    return math.inf if recorded is True else float(recorded)


def readable(
    dataset: Dataset, names: list[str], config: EvaluateConfig, console: Console
) -> tuple[list[Case], DatasetCheck]:
    """Cases that can be scored, and what was found; a bad one raises BadCase unless it may be skipped."""
    checked = check_dataset(
        dataset,
        cases=names[: config.cases],
        track=lambda items: tracked(items, "check", console),
        say=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    refuse_bad(checked, dataset, config.skip_bad)
    bad = checked.bad_cases()
    found = [dataset.case(name) for name in checked.facts if name not in bad]
    if not found:
        raise BadConfig(
            f"The {config.split} split of {dataset.folder} has no case to score; choose another --split."
        )
    return found, checked


def _seen_before(run: Mapping[str, Any], digest: str, cases: list[Case]) -> list[Finding]:
    """Cases that the run or a teacher of it was trained on, whose scores say nothing of new ones."""
    seen = of_data(seen_by(run), digest)
    known = tuple(case.id for case in cases if case.id in seen)
    if not known:
        return []
    message = (
        f"of {counted(len(cases), 'case')} {len(known)} had been seen in training, by the run or by a teacher that it "
        "learnt from; their scores say nothing of new patients"
    )
    return [Finding("seen in training", "note", message, known)]


def _ensemble(
    config: EvaluateConfig, subject: Subject, predictor: Predictor, cases: list[Case], console: Console
) -> EnsemblePredictor:
    """The predictor of --run with those of --ensemble; raises BadConfig for runs that do not belong together."""
    members, scored = [predictor], {case.id for case in cases}
    first = Member(subject.adapted.spec, subject.preparation, subject.metadata)
    for folder in (config.run, *config.ensemble):
        if "rounds" in run_directory.finished(folder):
            raise BadConfig(f"{folder} is a federated run; an ensemble is made of runs of adapt.")
    for folder in config.ensemble:
        record = run_directory.finished(folder)
        loaded = load_adapted(
            folder / run_directory.DELTA,
            model=None,
            dtype=record["dtype"],
            file=record["weights"] and Path(record["weights"]),
            offline=config.offline,
            run=record,
        )
        if loaded.note:
            console.print(f"warning: {loaded.note}", markup=False, soft_wrap=True)
        check_member(folder, Member(loaded.adapted.spec, loaded.preparation, loaded.metadata), first)
        seen = scored.intersection(record["resolved"]["split"]["train"]) if _same_data(config, record) else ()
        if seen and config.split != "train":
            raise BadConfig(
                f"{folder} was trained on {counted(len(seen), 'case')} of those to be scored, '{min(seen)}' among "
                "them; the score would be too good. Use runs with one test, like those of adapt --fold."
            )
        asked = {"flips": config.flips, "overlap": resolved_overlap(loaded.adapted.spec, config.overlap)}
        members.append(Predictor(loaded.adapted, loaded.base.params, loaded.delta, **asked))
    return EnsemblePredictor(members)


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
