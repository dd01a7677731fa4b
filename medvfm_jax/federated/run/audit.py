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
from medvfm_jax.federated.privacy import (
    canary_scores,
    canary_update,
    epsilon_lower_bound,
    loss_attack,
    per_patient,
)
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.membership import largest_advantage, largest_auc, true_positive_rate
from medvfm_jax.federated.run import canary_release
from medvfm_jax.federated.run.resolving import FederatedRun, resolve
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import tracked
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.audit import AuditConfig
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig, from_json
from medvfm_jax.train.stored_delta import check_run, load_adapted
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training_data import SplitData, open_split, training_data
from medvfm_jax.types import Delta, Params
from medvfm_jax.weights import artifacts

FILE = "audit.json"  # as report.run_record.AUDIT
_FALSE_POSITIVES = 0.1  # at which the share of patients found is stated


class _Run(NamedTuple):
    """What is attacked; before: the delta it started from.  federated: the run as it was resolved, if it was one."""

    adapted: AdaptedModel
    params: Params
    delta: Delta
    before: Delta
    objective: str
    prompt: str
    source: SplitData
    settings: AdaptConfig
    federated: FederatedRun | None


def audit(config: AuditConfig, console: Console | None = None) -> dict[str, Any]:
    """Audit a run -> {"not_private", "canary", "membership", "file"}; written to ``config.out``.

    not_private: why the claim does not hold whatever the canary shows, None if nothing is known.  canary: None without
    privacy.

    What it finds is exact and about the patients trained on, so no guarantee of the run covers it.
    Raises MedvfmError: no finished run, one without a shared model, a foreign delta, data or weights that have changed.
    """
    console = console or Console(stderr=True, highlight=False)
    _refuse_without_shared_model(config.run)
    record = run_directory.finished(config.run)
    file = config.run / run_directory.DELTA
    if note := check_run(record, artifacts.read_metadata(file), file):
        console.print(f"warning: {note}", markup=False, soft_wrap=True)
    run = _federated(config, record) if "rounds" in record else _adapted(config, record)
    if run.source.sha256 != record["resolved"]["data_sha256"]:
        raise BadConfig(
            f"The images in {run.source.dataset.folder} are not those {config.run} was trained on; bring them back to "
            "audit it."
        )
    private = run.federated is not None and run.federated.privacy is not None
    found = {
        "run": str(config.run),
        "not_private": run.federated.privacy.no_secret if private else None,
        "canary": canary(config, run.federated) if private else None,
        "membership": _membership(config, run, console),
    }
    out = config.run / FILE if config.out is None else config.out
    run_directory.write_json(out, found)
    return run_directory.finite(found) | {"file": str(out)}


def canary(config: AuditConfig, run: FederatedRun) -> dict[str, Any]:
    """Lower bound on the epsilon of all rounds of a private run, beside what it claims.

    The canary is a random direction of ten times the clip, so that a mechanism that does not clip is found.
    "left_out" says what of the mechanism was not run.
    """
    settings, privacy = run.config, run.privacy
    rounds, claimed = settings.rounds, privacy.guarantee(settings.rounds)
    left_out = None
    if privacy.mechanism is not None:
        left_out = canary_release.MASKS
        release = canary_release.noisy_sum_release(privacy.mechanism, privacy.answered, rounds)
    elif settings.patient_privacy:
        release = canary_release.patient_release(privacy.privacy, rounds * privacy.steps, claimed.rate)
    else:
        release = canary_release.client_release(privacy.privacy, run.codec, rounds, claimed.rate)
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
        "left_out": left_out,
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


def _refuse_without_shared_model(run: Path) -> None:
    """Raise BadConfig for sites that trained alone: they have no delta, which would be taken for an unfinished run."""
    if not (run / run_directory.CONFIG).exists():
        return
    resolved = run_directory.read_record(run / run_directory.CONFIG).get("resolved")
    if isinstance(resolved, dict) and resolved.get("algorithm") == "local":
        raise BadConfig(f"{run} trained every site alone; there is no shared model to audit.")


def _federated(config: AuditConfig, record: dict[str, Any]) -> _Run:
    file = config.run / run_directory.DELTA
    settings = dataclasses.replace(
        from_json(FederateConfig, record),
        data=record["resolved"]["data"],
        weights=config.weights or (record["weights"] and Path(record["weights"])),
        offline=config.offline,
    )
    run = resolve(settings)
    delta, metadata = artifacts.load_delta(file)
    artifacts.check_fingerprint(metadata, run.base.fingerprint)  # of weights that no system has transformed
    # Whoever was left out is another hospital, not an equal of those trained on.
    split = run.source.split
    test = [case for case in split.test if run.source.dataset.case(case).site != settings.leave_out]
    source = run.source._replace(split=split._replace(test=tuple(test)))
    objective, prompt = record["resolved"]["objective"], metadata["prompt"]
    return _Run(run.adapted, run.base.params, delta, run.delta, objective, prompt, source, settings, run)


def _adapted(config: AuditConfig, record: dict[str, Any]) -> _Run:
    file = config.run / run_directory.DELTA
    settings = from_json(AdaptConfig, record)
    weights = config.weights or (record["weights"] and Path(record["weights"]))
    loaded = load_adapted(
        file,
        model=None,
        dtype=record["dtype"],
        file=weights,
        offline=config.offline,
    )
    source = open_split(
        record["resolved"]["data"],
        seed=settings.seed,
        val=settings.val_fraction,
        test=settings.test_fraction,
        offline=config.offline,
        allow_geometry_mismatch=settings.allow_geometry_mismatch,
        follow_links=settings.follow_links,
        objects=record["resolved"].get("objects"),
        given=record["resolved"]["split"],
        annotated=settings.annotated,
    )
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)  # as `adapt` starts
    before = loaded.adapted.init(key, loaded.base.params)
    objective, prompt = record["resolved"]["objective"], loaded.metadata["prompt"]
    params = loaded.base.params
    return _Run(loaded.adapted, params, loaded.delta, before, objective, prompt, source, settings, None)


def _membership(config: AuditConfig, run: _Run, console: Console) -> dict[str, Any]:
    """Losses of training patients against those of test patients, as they are and relative to before training."""
    if not run.source.split.test:
        raise BadConfig(
            f"{config.run} kept no patient for the test, so there are no non-members to compare with."
        )
    split = run.source.split
    members, others = (
        _losses(config, run, cases, console, title)
        for title, cases in (("losses of members", split.train), ("losses of others", split.test))
    )
    found = {}
    for kind, column in (("loss", 0), ("loss_change", 1)):
        attack = loss_attack(members[column], others[column])
        found[kind] = attack._asdict() | {
            "found_at": _FALSE_POSITIVES,
            "found": true_positive_rate(members[column], others[column], _FALSE_POSITIVES),
        }
    if run.federated is not None and run.federated.privacy is not None:
        claimed = run.federated.privacy.guarantee(run.federated.config.rounds)
        found["allowed_auc"] = largest_auc(claimed.epsilon, claimed.delta)
        found["allowed_advantage"] = largest_advantage(claimed.epsilon, claimed.delta)
    return found


def _losses(
    config: AuditConfig, run: _Run, cases: Sequence[str], console: Console, title: str
) -> tuple[NDArray, NDArray]:
    """-> mean loss of each patient (P,), and how much it changed with training (P,)."""
    dataset = run.source.dataset
    own = run.source._replace(split=run.source.split._replace(train=tuple(cases), val=()))
    data = training_data(own, run.adapted.spec, run.prompt, run.settings)
    exact = data.prompts and PromptConfig(data.prompts.kind, data.prompts.count, jitter=0.0, centre=True)
    loss = jax.jit(make_loss(run.adapted, run.objective))
    by_patient: dict[str, list] = {}
    for example in data.train:
        by_patient.setdefault(dataset.case(example.case).patient, []).append(example)
    chosen = _spread(list(by_patient), config.patients)
    owners, values, changes = [], [], []
    for patient in tracked(chosen, title, console):
        loader = make_loader(
            dataset, _spread(by_patient[patient], config.slices), data.spec, data.task,
            batch_size=1, seed=config.seed, prompts=exact, shuffle=False, epochs=1, threads=0,
        )  # fmt: skip
        for batch in loader:
            now, before = (
                float(loss(run.params, delta, batch, jax.random.key(0))[0])
                for delta in (run.delta, run.before)
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
