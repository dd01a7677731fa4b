"""`evaluate` of a federated run: its own division among sites, and every site's images with the model of that site."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from medvfm_jax.adapters import touches_encoder
from medvfm_jax.data import Case, Split
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.run.model_names import REFERENCES, SHARED_MODEL, merged, own_model
from medvfm_jax.federated.run.resolving import divide
from medvfm_jax.federated.systems.feddpa_inference import InstanceMixed
from medvfm_jax.predict.evaluated_cases import allowed_mismatch
from medvfm_jax.predict.evaluation import Choice, Sites
from medvfm_jax.predict.evaluation import evaluate as evaluate_one
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.predict.subject import Subject
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig, from_json
from medvfm_jax.train.stored_delta import check_run
from medvfm_jax.train.training_data import SplitData
from medvfm_jax.weights import artifacts


def evaluate(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """``predict.evaluate``, in which each case of a federated run is predicted with the model that its site uses.

    "scored_by" of the scores names the model of each case where clients keep one; a site that took no part, or a case
    of other data without a site of this name, has the shared one.  Raises MedvfmError as ``predict.evaluate``,
    ForeignDelta and BadDelta for a file of the clients' parts that is not of this run, and BadFederation for a run of
    local training.
    """
    folder = config.run
    if folder is not None and _without_shared_model(folder):
        raise BadFederation(
            f"{folder} trained every site alone and has no shared model to evaluate; the scores of its sites are those "
            f"the run made, {folder / run_directory.SCORES}."
        )
    return evaluate_one(config, console, Sites(_data, _choose))


def _without_shared_model(folder: Path) -> bool:
    return (folder / run_directory.PERSONAL).is_file() and not (folder / run_directory.DELTA).is_file()


def _data(config: EvaluateConfig, run: Mapping[str, Any]) -> SplitData:
    """The patients as the run divided them, with its recorded split."""
    recorded, resolved = from_json(FederateConfig, run), run["resolved"]
    settings = dataclasses.replace(
        recorded,
        data=resolved["data"],
        offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch or allowed_mismatch(run),
        follow_links=config.follow_links or recorded.follow_links,
        objects=config.objects or resolved.get("objects") or None,
    )
    source, _ = divide(settings)
    given = {name: tuple(cases) for name, cases in resolved["split"].items()}
    for case in [case for cases in given.values() for case in cases]:
        source.dataset.case(case)  # says which one is missing
    return source._replace(split=Split(**given))


def _choose(
    config: EvaluateConfig, run: Mapping[str, Any], subject: Subject, shared: Predictor
) -> Callable[[Case], Choice] | None:
    file = config.run / run_directory.PERSONAL
    if not file.is_file():
        return None
    if config.runtime != "jax" and touches_encoder(subject.delta):
        raise BadConfig(
            f"Every site of {config.run} has an encoder of its own, which JAX alone can run; leave out --runtime."
        )
    kept, metadata = artifacts.load_delta(file)
    check_run(run, metadata, file)
    shapes = jax.eval_shape(lambda: subject.delta)

    def whole(own: Mapping[str, Any]) -> Any:
        delta = merged(own, subject.delta)
        artifacts.check_arrays(delta, shapes, file)
        return delta

    models = {site: whole({k: v for k, v in own.items() if k != REFERENCES}) for site, own in kept.items()}

    @functools.cache
    def mixed() -> InstanceMixed:
        site, delta = next(iter(models.items()))
        params = subject.base.params
        return InstanceMixed(subject.adapted, params, delta, kept[site][REFERENCES], flips=config.flips)

    @functools.cache
    def of_site(site: str) -> Choice:
        if site not in models:
            return Choice(shared, SHARED_MODEL)
        if REFERENCES in kept[site]:
            return Choice(mixed().of_client(models[site], kept[site][REFERENCES]), own_model(site))
        return Choice(shared.with_delta(models[site]), own_model(site))

    return lambda case: of_site(case.site)
