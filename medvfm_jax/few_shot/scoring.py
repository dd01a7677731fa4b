"""`fewshot`: a frozen model and a few labelled cases, scored on whole cases as `evaluate` scores."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from medvfm_jax.data import Case, Dataset
from medvfm_jax.data.selection import SELECTIONS
from medvfm_jax.data.splits import stratified_order
from medvfm_jax.few_shot.dense_features import (
    BadSupport,
    DenseEncoder,
    encode_support,
    load_encoder,
)
from medvfm_jax.few_shot.methods import METHODS
from medvfm_jax.local_paths import file_word
from medvfm_jax.metrics import profiles
from medvfm_jax.predict.evaluated_cases import readable
from medvfm_jax.predict.score_files import refuse_foreign
from medvfm_jax.predict.scored_cases import score_cases
from medvfm_jax.predict.subject import Subject
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import tracked
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import with_adapter
from medvfm_jax.train.case_selection import mean_features
from medvfm_jax.train.data_check import about, lines
from medvfm_jax.train.training_data import SplitData, open_split


def few_shot(config: FewShotConfig, console: Console | None = None) -> dict[str, Any]:
    """Learn from a support, predict whole cases on their own grid, score them and write scores.json.

    Args:
        config: settings.
        console: shows progress.

    Returns:
        What was written, and where: "file". "few_shot" holds the method, its settings and the names of the support.

    Raises:
        BadConfig: settings that contradict each other or the model.
        BadSupport: a support that shows nothing of a class, has other labels, or holds an image that is to be scored.
        MedvfmError: data (all cases are read before the first prediction) or weights.

    Examples:
        >>> scores = few_shot(FewShotConfig("data/dsb2018", train_cases=4, method="prototype"))
        >>> [row["mean"] for row in scores["summary"] if row["metric"] == "dice"]
    """
    console = console or Console(stderr=True, highlight=False)
    profiles.get(config.profile)
    source, learning, candidates = open_data(config)
    _refuse_slices(config, source.dataset)
    out = config.out or _default_out(config, source)
    refuse_foreign(out, config.save_predictions and config.out is not None)
    scoring = as_evaluation(config)
    names = getattr(source.split, config.split) if config.split != "all" else sorted(source.dataset.by_id)
    cases, checked = readable(source.dataset, names, scoring, console)
    base = load_encoder(config.model, file=config.weights, dtype=config.dtype, offline=config.offline)
    encoder = DenseEncoder(base.model, base.params)
    chosen = _support_cases(config, learning, candidates, encoder, console)
    if learning is source.dataset and (seen := sorted({case.id for case in cases} & set(chosen))):
        if config.split == "all":
            cases = [case for case in cases if case.id not in seen]
        else:
            console.print("warning: cases of the support are scored too", markup=False)
    if learning is not source.dataset:
        check_apart(cases, [learning.case(name) for name in chosen])
    support = encode_support(encoder, learning, chosen, config.slices)
    console.print(
        f"support: {counted(len(chosen), 'case')} ({counted(len(support.pictures), 'picture')}): "
        f"{', '.join(chosen[:6])}{' ...' if len(chosen) > 6 else ''}",
        markup=False,
        soft_wrap=True,
    )
    predictor = METHODS[config.method].make(base, encoder, support, config)
    subject = Subject(
        config.model,
        config.method,
        base,
        with_adapter(base, None)._replace(spec=predictor.spec),
        {},
        "none",
        record={"few_shot": record_of(config, learning, chosen)},
    )
    run_directory.make_folder(out.parent)
    checked = about(checked, "none", predictor.spec)
    for line in lines(checked):
        console.print(line, markup=False, soft_wrap=True)
    return score_cases(scoring, out, source, cases, checked, subject, lambda case: predictor, console)


def _refuse_slices(config: FewShotConfig, dataset: Dataset) -> None:
    if config.method == "transductive" and dataset.dimension == 3:
        raise BadConfig(
            "--method transductive knows how much of a picture a class covers, which slices of a volume do not share; "
            "choose spatial."
        )


def open_data(config: FewShotConfig) -> tuple[SplitData, Dataset, list[str]]:
    """The data to score, those to learn from, and the names of the cases that the support is chosen from."""

    def opened(folder: str) -> SplitData:
        return open_split(
            folder,
            seed=config.seed,
            val=config.val_fraction,
            test=config.test_fraction,
            offline=config.offline,
            allow_geometry_mismatch=config.allow_geometry_mismatch,
            follow_links=config.follow_links,
        )

    source = opened(config.data)
    if config.support is None:
        return source, source.dataset, list(source.split.train)
    learning = opened(config.support).dataset
    if dict(learning.labels) != dict(source.dataset.labels):
        raise BadSupport(
            f"{learning.folder} has the labels {', '.join(learning.labels)}; {source.dataset.folder} has "
            f"{', '.join(source.dataset.labels)}. Rename them so that they agree."
        )
    if learning.dimension != source.dataset.dimension:
        raise BadSupport(
            f"Of {learning.folder} and {source.dataset.folder} one has volumes, the other pictures."
        )
    return source, learning, [case.id for case in learning.cases]


def check_apart(scored: Iterable[Case], support: Iterable[Case]) -> None:
    """Raise BadSupport if a case of another folder has the image of a case to be scored, whatever their names."""
    scored, support = list(scored), list(support)
    sizes = {_size(case) for case in scored}
    again = [case for case in support if _size(case) in sizes]
    if not again:
        return
    known = {_content(case): case for case in scored}
    twice = [(case, known[_content(case)]) for case in again if _content(case) in known]
    if twice:
        case, same = twice[0]
        raise BadSupport(
            f"{counted(len(twice), 'image')} of the support would be scored too, {case.images[0]} as case '{same.id}' "
            "among them; the score would be too good. Take a --support without them, or leave it out."
        )


def _size(case: Case) -> int:
    return case.images[0].stat().st_size


def _content(case: Case) -> bytes:
    with open(case.images[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _support_cases(
    config: FewShotConfig,
    dataset: Dataset,
    candidates: Sequence[str],
    encoder: DenseEncoder,
    console: Console,
) -> list[str]:
    """Names of the cases of the chosen patients; a smaller random choice lies within a larger one."""
    patients = stratified_order(dataset, candidates, config.seed)
    if config.train_cases > len(patients):
        raise BadSupport(
            f"{config.train_cases} patients were asked for as support; {dataset.folder} leaves {len(patients)}."
        )
    if config.select_cases != "random":
        tracking = tracked(patients, "features", console)
        vectors = mean_features(dataset, candidates, tracking, encoder.mean)
        patients = [patients[i] for i in SELECTIONS[config.select_cases](vectors, config.train_cases)]
    chosen = set(patients[: config.train_cases])
    return [case for case in candidates if dataset.case(case).patient in chosen]


def _default_out(config: FewShotConfig, source: SplitData) -> Path:
    words = ("fewshot", config.method, config.model, file_word(source.dataset.name))
    return Path("runs") / "_".join(words) / run_directory.SCORES


def as_evaluation(config: FewShotConfig) -> EvaluateConfig:
    """The settings of an evaluation without prompts that these name."""
    shared = (
        "data", "model", "split", "profile", "save_predictions", "cases", "val_fraction", "test_fraction", "seed",
        "weights", "dtype", "offline", "skip_bad", "allow_geometry_mismatch", "follow_links",
    )  # fmt: skip
    return EvaluateConfig(**{name: getattr(config, name) for name in shared}, prompt="none")


def record_of(config: FewShotConfig, learning: Dataset, chosen: Sequence[str]) -> dict[str, Any]:
    """For scores.json."""
    return {
        "method": config.method,
        "source": METHODS[config.method].source,
        "support": learning.name,
        "support_cases": list(chosen),
        "select_cases": config.select_cases,
        "temperature": config.temperature,
        "steps": config.steps,
        "learning_rate": config.learning_rate,
        "size_margin": config.size_margin,
        "size_weight": config.size_weight,
        "prototypes": config.prototypes,
        "most_objects": config.most_objects,
        "clusters": config.clusters,
        "merged_masks": config.merged_masks,
        "slices": config.slices,
    }
