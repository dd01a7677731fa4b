"""`evaluate`: scores of a run, or of a pretrained model zero-shot, on whole cases, with patient-level intervals."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from medvfm_jax.adapters import touches_encoder
from medvfm_jax.adapters.task_tables import tasks_of
from medvfm_jax.data import Case
from medvfm_jax.export.frozen_encoder import frozen_encoder
from medvfm_jax.metrics import profiles
from medvfm_jax.predict.case_task import by_task
from medvfm_jax.predict.ensemble import EnsemblePredictor, Member, check_member
from medvfm_jax.predict.evaluated_cases import evaluated_data, readable, same_data, scores_path, seen_before
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.predict.score_files import refuse_foreign
from medvfm_jax.predict.scored_cases import score_cases
from medvfm_jax.predict.subject import Subject, open_subject
from medvfm_jax.predict.volume_prediction import resolved_overlap
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.data_check import about, lines
from medvfm_jax.train.stored_delta import load_adapted
from medvfm_jax.train.training_data import SplitData


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
    source = evaluated_data(config, run, None if sites is None else sites.data)
    if same_data(config, run) and run["resolved"]["data_sha256"] != source.sha256:
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
        checked = checked._replace(findings=(*checked.findings, *seen_before(run, source.sha256, cases)))
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


def _run_record(config: EvaluateConfig) -> dict[str, Any] | None:
    return None if config.run is None else run_directory.finished(config.run)


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
        seen = scored.intersection(record["resolved"]["split"]["train"]) if same_data(config, record) else ()
        if seen and config.split != "train":
            raise BadConfig(
                f"{folder} was trained on {counted(len(seen), 'case')} of those to be scored, '{min(seen)}' among "
                "them; the score would be too good. Use runs with one test, like those of adapt --fold."
            )
        asked = {"flips": config.flips, "overlap": resolved_overlap(loaded.adapted.spec, config.overlap)}
        members.append(Predictor(loaded.adapted, loaded.base.params, loaded.delta, **asked))
    return EnsemblePredictor(members)
