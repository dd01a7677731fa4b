"""What is told and written of each round: numbers of the metrics file, one line for a reader, Dice of every site."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from medvfm_jax.federated.core.client_models import Models, model_of
from medvfm_jax.federated.run.resolving import FederatedRun
from medvfm_jax.federated.run.round_data import ClientData
from medvfm_jax.federated.systems.feddpa import HALF, mix
from medvfm_jax.train.hooks import Recorder, record_scores, to_file
from medvfm_jax.train.loop import StepEnd
from medvfm_jax.train.validation import Measure, make_validation
from medvfm_jax.types import Batch, Delta

Score = Callable[[Models], dict[str, float]]
NO_SUM = "no_sum"
_CLOCK = ("seconds", "time")
_WITHOUT_SUM = (NO_SUM, "participants", "dropped", "upload_bytes", "download_bytes")
_UNUSABLE = {
    False: "its update was not finite",
    True: "its update was not finite or beyond --secure-reach",
}


def recorder(run: FederatedRun) -> Recorder:
    """Lines of the metrics file; of a private run without times, which follow from who was drawn."""
    write = to_file(run.config.out)
    if run.tells_all:
        return write
    return lambda line: write({name: value for name, value in line.items() if name not in _CLOCK})


def site_validation(run: FederatedRun, measure: Measure, prepare: Callable[[Batch], Batch]) -> Score | None:
    """Return ``score(models)``, None without any validation image.

    -> {"dice" and "loss": mean over the sites looked at, "worst": the lowest Dice, "dice/SITE": ...}; every
    site with the model it uses.  Sites whose prompts are all empty have no Dice and are left out of the mean.
    """
    scores, index_of = {}, run.index_of()
    for site in looked_at(run):
        data = site.data.validation()
        if data.batches:
            scores[site.name] = make_validation(run.base.params, measure, data, prepare)
    if not scores:
        return None

    def score(models: Models) -> dict[str, float]:
        found = {name: of_site(_validated(run, models, index_of(name))) for name, of_site in scores.items()}
        dice = {f"dice/{name}": value["dice"] for name, value in found.items()}
        known = [value for value in dice.values() if np.isfinite(value)]
        losses = [value["loss"] for value in found.values() if np.isfinite(value["loss"])]
        if not known:
            return {"dice": np.nan, "loss": np.nan, "worst": np.nan} | dice
        return {"dice": float(np.mean(known)), "loss": float(np.mean(losses)), "worst": min(known)} | dice

    return score


def looked_at(run: FederatedRun) -> list[ClientData]:
    """The sites that a validation looks at: at most ``validation_clients``, evenly spaced."""
    count = min(run.config.validation_clients, len(run.sites))
    return [run.sites[i] for i in np.linspace(0, len(run.sites) - 1, count).round().astype(int)]


def _validated(run: FederatedRun, models: Models, client: int | None) -> Delta:
    """The model of a site; where images are mixed one by one, the half-half mix of which its local part learns."""
    delta = model_of(models, client)
    return mix(delta, HALF) if run.entry.instance_mixing else delta


class RoundLog:
    """Hook: a line of the metrics file per round.

    {"step": rounds so far, "loss", "loss/CLIENT" of those that took part, "participants", "excluded": names,
    "upload_bytes" and "download_bytes" of all clients in this round, "epsilon" spent so far, "lr", "seconds", "time"}.
    With privacy "clipped", the share of units whose contribution was cut, and of all this only what is public: traffic,
    with unit client that of the expected number of clients, "epsilon" and "lr", unless the settings ask for all.
    With secure aggregation "no_sum": whether too few answered, so that there is no loss and nothing changed.
    "excluded" is public with unit patient; times never are, see `recorder`.
    """

    def __init__(self, run: FederatedRun, record: Recorder, rate: Callable[[int], float]):
        self._run, self._record, self._rate = run, record, rate

    def __call__(self, end: StepEnd) -> None:
        """Write the line."""
        run, excluded = self._run, excluded_clients(end.metrics)
        joined = [name for name in _set(end.metrics, "joined/") if name not in excluded]
        each = {f"loss/{name}": end.metrics[f"loss/{name}"] for name in joined}
        plain = {name: value for name, value in end.metrics.items() if "/" not in name}
        if NO_SUM in plain:
            plain[NO_SUM] = bool(plain[NO_SUM])
        if plain.get(NO_SUM):
            plain = {name: value for name, value in plain.items() if name in _WITHOUT_SUM}
            joined, each = [], {}
        line = {"step": end.step, **plain, **each}
        if run.tells_all or run.config.patient_privacy:
            line["excluded"] = excluded
        if run.privacy is not None:
            line["epsilon"] = run.privacy.guarantee(end.step).epsilon
        line |= {"lr": run.rate * self._rate(end.step - 1), "seconds": round(end.seconds, 3)}
        self._record(line | {"time": round(time.time(), 3)})
        record_scores(self._record, end)


class RoundLine:
    """Hook: one line for a reader after each validation, after the last round, and for an update left out."""

    def __init__(self, run: FederatedRun, say: Callable[[str], None]):
        self._run, self._say = run, say
        self._bytes = [0.0, 0.0]

    def __call__(self, end: StepEnd) -> None:
        """Say it."""
        numbers, run = end.metrics, self._run
        for name in excluded_clients(numbers):
            self._say(f"round {end.step}: {name} left out, {_UNUSABLE[run.secure is not None]}")
        self._bytes = [self._bytes[0] + numbers["upload_bytes"], self._bytes[1] + numbers["download_bytes"]]
        if numbers.get(NO_SUM):
            self._say(f"round {end.step}: no sum, because too few clients answered; nothing changed")
        every = run.config.validate_every
        if not end.last and (not every or end.step % every):
            return
        parts = [f"round {end.step}/{end.steps}"]
        if "loss" in numbers and not numbers.get(NO_SUM):
            parts.append(f"loss {numbers['loss']:.4f}")
        if end.scores is not None:
            parts.append(_sites(end.scores))
        if any(self._bytes):
            parts.append(f"so far {self._bytes[0] / 1e6:.2f} MB up, {self._bytes[1] / 1e6:.2f} MB down")
        if run.privacy is not None:
            parts.append(f"epsilon {run.privacy.guarantee(end.step).epsilon:.3g}")
        self._say("  ".join(parts))


def excluded_clients(metrics: Mapping[str, float]) -> list[str]:
    """Clients whose update of a round was not finite; none where a private run does not tell."""
    return _set(metrics, "excluded/")


def _set(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """Names of clients whose number with this prefix is not zero, in order."""
    return [name.removeprefix(prefix) for name, value in metrics.items() if name.startswith(prefix) and value]


def _sites(latest: Mapping[str, float]) -> str:
    dice = {name.removeprefix("dice/"): value for name, value in latest.items() if name.startswith("dice/")}
    known = {name: value for name, value in dice.items() if np.isfinite(value)}
    if not known:
        return "no validation Dice"
    worst = min(known, key=known.get)
    return f"validation Dice {latest['dice']:.4f}, worst {worst} {known[worst]:.4f}"
