"""Which data and cases an evaluation scores, where its scores go, and what had been seen in training."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from medvfm_jax.data import Case, Dataset
from medvfm_jax.data.check import DatasetCheck, check_dataset
from medvfm_jax.data.dataset import same_source
from medvfm_jax.data.findings import Finding
from medvfm_jax.data.objects import as_before
from medvfm_jax.local_paths import file_word
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import tracked
from medvfm_jax.runs.seen_cases import of_data, seen_by
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.data_check import refuse_bad
from medvfm_jax.train.training_data import SplitData, open_split


def scores_path(config: EvaluateConfig, source: SplitData, run: Mapping[str, Any] | None) -> Path:
    """Where the scores go: --out, RUN/scores.json, or runs/MODEL_DATA/scores.json for a zero-shot model.

    Another split or dataset than a run's own gets a name of its own.
    """
    if config.out is not None:
        return config.out
    if config.run is None:
        return Path("runs") / f"{config.model}_{file_word(source.dataset.name)}" / run_directory.SCORES
    own = same_data(config, run)
    words = [
        "scores",
        *([] if own else [file_word(source.dataset.name)]),
        *([] if config.split == "test" else [config.split]),
    ]
    return config.run / f"{'_'.join(words)}.json"


def same_data(config: EvaluateConfig, run: Mapping[str, Any] | None) -> bool:
    """Whether the data to be scored are those that a run names."""
    if run is None:
        return False
    return config.data is None or same_source(config.data, run["resolved"]["data"])


def evaluated_data(
    config: EvaluateConfig,
    run: Mapping[str, Any] | None,
    of_sites: Callable[[EvaluateConfig, Mapping[str, Any]], SplitData] | None,
) -> SplitData:
    """The data of a run with its own split, or other data with a split of their own.

    of_sites: opens the run's own data where they are divided among sites.
    """
    own = same_data(config, run)
    if own and of_sites is not None:
        return _as_recorded(config, run["resolved"], of_sites(config, run))
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


def seen_before(run: Mapping[str, Any], digest: str, cases: list[Case]) -> list[Finding]:
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
