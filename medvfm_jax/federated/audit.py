"""`audit`: what a finished run gives away, measured: its noise by a canary, its patients by their losses.

Neither proves privacy.  The canary gives a lower bound on epsilon that must not exceed the claim; the losses say
whether the simplest attack tells patients that were trained on from others.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax.adapters import AdaptedModel
from medvfm_jax.data import PromptConfig, make_loader
from medvfm_jax.federated import canary_release
from medvfm_jax.federated.codecs import make_codec
from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.federated.federated_run import divide
from medvfm_jax.federated.privacy import (
    canary_scores,
    canary_update,
    epsilon_lower_bound,
    loss_attack,
    per_patient,
)
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.membership import largest_advantage, largest_auc, true_positive_rate
from medvfm_jax.federated.privacy_plan import PrivacyPlan, plan
from medvfm_jax.train import run_directory
from medvfm_jax.train.assemble import load_adapted
from medvfm_jax.train.config import AdaptConfig, BadConfig, from_json, require
from medvfm_jax.train.progress import tracked
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training_data import SplitData, open_split, training_data
from medvfm_jax.types import Delta, Params

FILE = "audit.json"
_FALSE_POSITIVES = 0.1  # at which the share of patients found is stated


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Measure what a finished run gives away about its patients."""

    run: Path
    """Run directory of `adapt` or `federate`."""
    out: Path | None = None
    """File to write; by default audit.json in the run, where `report` finds it."""
    trials: int | None = None
    """Runs of the mechanism with the canary, and as many without it; more give a tighter lower bound. By default enough
    to refute the claim of the run, at most 100000."""
    confidence: float = 0.95
    """With which the lower bound on epsilon holds."""
    patients: int | None = None
    """Patients of each group whose losses are computed, at most, spread evenly; by default all."""
    slices: int = 8
    """Slices of a patient whose losses are averaged, at most, spread evenly."""
    weights: Path | None = None
    """File with the base weights, if the run was made with one that has moved."""
    seed: int = 0
    """Seed of the canary and of its trials."""
    offline: bool = False
    """Never touch the network."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig."""
        require(self.trials is None or self.trials >= 20, "trials", self.trials, "at least 20")
        require(0 < self.confidence < 1, "confidence", self.confidence, "between 0 and 1")
        require(self.patients is None or self.patients >= 2, "patients", self.patients, "at least 2")
        require(self.slices >= 1, "slices", self.slices, "at least 1")


def audit(config: AuditConfig, console: Console | None = None) -> dict[str, Any]:
    """Audit a run -> {"canary": None without privacy, "membership", "file"}; written to ``config.out``.

    Raises MedvfmError: no finished run, one without a shared model, data or weights that have changed.
    """
    console = console or Console(stderr=True, highlight=False)
    record = run_directory.finished(config.run)
    federated = "rounds" in record
    if federated and record["resolved"]["algorithm"] == "local":
        raise BadConfig(f"{config.run} trained every site alone; there is no shared model to audit.")
    privacy = None
    if federated:
        settings = from_json(FederateConfig, record)
        privacy = plan(settings, record["resolved"]["training_patients"])
    found = {
        "run": str(config.run),
        "canary": None if privacy is None else canary(config, settings, record, privacy),
        "membership": _membership(config, record, federated, privacy, console),
    }
    out = config.run / FILE if config.out is None else config.out
    run_directory.write_json(out, found)
    return run_directory.finite(found) | {"file": str(out)}


def canary(
    config: AuditConfig, settings: FederateConfig, record: dict[str, Any], privacy: PrivacyPlan
) -> dict[str, Any]:
    """Lower bound on the epsilon of all rounds of a run, beside what it claims.

    The canary is a random direction of ten times the clip, so that a mechanism that does not clip is found.
    """
    rounds, claimed = settings.rounds, privacy.guarantee(settings.rounds)
    if settings.patient_privacy:
        release = canary_release.patient_release(privacy.privacy, rounds * privacy.steps, claimed.rate)
    else:
        codec = make_codec(settings.codec, **record["resolved"]["codec_options"])
        release = canary_release.client_release(privacy.privacy, codec, rounds, claimed.rate)
    trials = config.trials or _enough(claimed.epsilon, config.confidence)
    like = canary_release.zeros()
    key = jax.random.key(config.seed)
    update = canary_update(jax.random.fold_in(key, 0), like, 10 * settings.dp_clip)
    scores = jax.jit(lambda k: canary_scores(release, update, trials, k, batch=500))(
        jax.random.fold_in(key, 1)
    )
    found = epsilon_lower_bound(*scores, settings.dp_delta, config.confidence)
    perfect = epsilon_lower_bound([1] * trials, [0] * trials, settings.dp_delta, config.confidence)
    return {
        "unit": settings.dp_unit,
        "claimed_epsilon": claimed.epsilon,
        "lower_bound": found.epsilon,
        "delta": found.delta,
        "confidence": found.confidence,
        "largest_possible": perfect.epsilon,  # with so many trials, had every guess been right
        "contradicts": found.contradicts(claimed.epsilon),
        "trials": trials,
        "hits": list(found.hits),
        "false_alarms": list(found.false_alarms),
    }


def _enough(epsilon: float, confidence: float) -> int:
    """Trials after which guesses that are all right refute a claim.

    Half of them choose the threshold; of the others, none a false alarm bounds their rate by
    log(2 / (1 - confidence)) / half.  Twice as many, so that a few wrong guesses do not matter.
    """
    wanted = 4 * math.log(2 / (1 - confidence)) * math.exp(min(epsilon, 20.0))
    return int(min(max(2000, wanted), 100_000))


class _Model(NamedTuple):
    """What is attacked; before: the delta it started from."""

    adapted: AdaptedModel
    params: Params
    delta: Delta
    before: Delta
    objective: str


def _membership(
    config: AuditConfig,
    record: dict[str, Any],
    federated: bool,
    privacy: PrivacyPlan | None,
    console: Console,
) -> dict[str, Any]:
    """Losses of training patients against those of test patients, as they are and relative to before training."""
    weights = config.weights or (record["weights"] and Path(record["weights"]))
    loaded = load_adapted(
        config.run / run_directory.DELTA,
        model=None,
        dtype=record["dtype"],
        file=weights,
        offline=config.offline,
    )
    source, settings = _data(config, record, federated)
    key = jax.random.fold_in(jax.random.key(record["seed"]), 1)  # as `adapt` and `federate` start
    before = loaded.adapted.init(key, loaded.base.params)
    objective = record["resolved"]["objective"]
    model = _Model(loaded.adapted, loaded.base.params, loaded.delta, before, objective)
    prompt, split = loaded.metadata["prompt"], source.split
    if not split.test:
        raise BadConfig(f"{config.run} kept no patient for the test, so there is nobody to compare with.")
    groups = {
        name: _losses(config, model, source, cases, prompt, settings, console, f"losses of {name}")
        for name, cases in (("members", split.train), ("others", split.test))
    }
    found = {}
    for kind, column in (("loss", 0), ("loss_change", 1)):
        members, others = groups["members"][column], groups["others"][column]
        attack = loss_attack(members, others)
        found[kind] = attack._asdict() | {
            "found_at": _FALSE_POSITIVES,
            "found": true_positive_rate(members, others, _FALSE_POSITIVES),
        }
    if privacy is not None:
        claimed = privacy.guarantee(settings.rounds if federated else 0)
        found["allowed_auc"] = largest_auc(claimed.epsilon, claimed.delta)
        found["allowed_advantage"] = largest_advantage(claimed.epsilon, claimed.delta)
    return found


def _data(
    config: AuditConfig, record: dict[str, Any], federated: bool
) -> tuple[SplitData, AdaptConfig | FederateConfig]:
    """The data of the run, with its own split and, in a federation, its own clients. Raises BadConfig if changed."""
    if federated:
        settings = from_json(FederateConfig, record)
        source, _ = divide(
            dataclasses.replace(settings, data=record["resolved"]["data"], offline=config.offline)
        )
        # Whoever was left out is another hospital, not an equal of those trained on.
        test = [case for case in source.split.test if source.dataset.case(case).site != settings.leave_out]
        source = source._replace(split=source.split._replace(test=tuple(test)))
    else:
        settings = from_json(AdaptConfig, record)
        source = open_split(
            record["resolved"]["data"],
            seed=settings.seed,
            val=settings.val_fraction,
            test=settings.test_fraction,
            offline=config.offline,
            allow_geometry_mismatch=settings.allow_geometry_mismatch,
            given=record["resolved"]["split"],
        )
    if source.sha256 != record["resolved"]["data_sha256"]:
        raise BadConfig(
            f"The images in {source.dataset.folder} are not those {config.run} was trained on; bring them back to "
            "audit it."
        )
    return source, settings


def _losses(
    config: AuditConfig,
    model: _Model,
    source: SplitData,
    cases: Sequence[str],
    prompt: str,
    settings: AdaptConfig | FederateConfig,
    console: Console,
    title: str,
) -> tuple[NDArray, NDArray]:
    """-> mean loss of each patient (P,), and how much it changed with training (P,)."""
    local = settings.local() if isinstance(settings, FederateConfig) else settings
    own = source._replace(split=source.split._replace(train=tuple(cases), val=()))
    data = training_data(own, model.adapted.spec, prompt, local)
    exact = data.prompts and PromptConfig(data.prompts.kind, data.prompts.count, jitter=0.0, centre=True)
    loss = jax.jit(make_loss(model.adapted, model.objective))
    by_patient: dict[str, list] = {}
    for example in data.train:
        by_patient.setdefault(source.dataset.case(example.case).patient, []).append(example)
    chosen = _spread(list(by_patient), config.patients)
    owners, values, changes = [], [], []
    for patient in tracked(chosen, title, console):
        loader = make_loader(
            source.dataset, _spread(by_patient[patient], config.slices), data.spec, data.task,
            batch_size=1, seed=config.seed, prompts=exact, shuffle=False, epochs=1, threads=0,
        )  # fmt: skip
        for batch in loader:
            now, before = (
                float(loss(model.params, delta, batch, jax.random.key(0))[0])
                for delta in (model.delta, model.before)
            )
            owners.append(patient)
            values.append(now)
            changes.append(now - before)
    finite = np.isfinite(values) & np.isfinite(changes)
    if not finite.all():
        raise BadPrivacy(
            f"{(~finite).sum()} losses of {config.run} are not finite; its model cannot be audited."
        )
    return per_patient(values, owners), per_patient(changes, owners)


def _spread(items: Sequence, most: int | None) -> list:
    """At most so many of the items, spread evenly."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
