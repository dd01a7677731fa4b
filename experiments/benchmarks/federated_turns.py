"""The measurement of `federated_rounds`: weights compared, turns taken, a table."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks import federated_problem as given
from experiments.benchmarks.federated_contender import Contender, Lost, Process, started
from experiments.benchmarks.federated_problem import Problem
from medvfm_jax.bench.turns import rotated

OURS = "medvfm_jax"
COMPARED_ROUNDS = 2
ROUNDS_PER_TURN = {"cnn": 1, "linear": 5}
COLUMNS = (
    "",
    "s/round",
    "/ ours",
    "CPU s/round",
    "/ ours",
    "first round",
    "compile",
    "test loss",
    "no dropout",
)

Numbers = dict[str, dict[str, Any]]


def measure(
    problem: Problem,
    contenders: Mapping[str, Contender | str],
    turns: int,
    keep: Callable[[dict[str, Any]], None] = lambda case: None,
) -> dict[str, Any]:
    """All numbers of one model; a contender that fails is reported with its reason, the others go on.

    keep: gets what is known after every turn, so that a run that is ended keeps it.
    """
    numbers: Numbers = {
        name: {"missing": c} if isinstance(c, str) else {"versions": c.versions(), "options": dict(c.options)}
        for name, c in contenders.items()
    }
    present = {name: c for name, c in contenders.items() if not isinstance(c, str)}
    _compare_weights(problem._replace(dropout=False), present, numbers)
    per_turn = ROUNDS_PER_TURN[problem.model]
    case: dict[str, Any] = {
        "model": problem.model,
        "cohort": problem.cohort,
        "clients": len(given.read(problem.folder).images),
        "gflop_per_round": given.gflop_of_round(problem.model, problem.cohort),
        "rounds_per_turn": per_turn,
        "contenders": numbers,
    }
    with started(problem, present) as running:
        for name in present.keys() - running.keys():
            numbers[name]["missing"] = "did not start"
        for name, process in running.items():
            numbers[name] |= process.loaded
        for name, facts in _turn(running, numbers, 0, 1).items():
            numbers[name] |= {"first_round_s": facts["seconds"], "test_losses": [facts["test_loss"]]}
        for i in range(turns):
            for name, facts in _turn(running, numbers, i, per_turn).items():
                for field in ("seconds", "cpu_seconds"):
                    numbers[name].setdefault(field, []).append(facts[field] / per_turn)
                numbers[name]["test_losses"].append(facts["test_loss"])
            _summarise(numbers, i + 1)
            case["end"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            keep(case)
            print(f"  {problem.model}: turn {i + 1} of {turns}", flush=True)
    return case


def _summarise(numbers: Numbers, turns: int) -> None:
    """Add medians, and the median over turns of each contender's ratio to ours."""
    for this in numbers.values():
        for field in ("seconds", "cpu_seconds"):
            if len(this.get(field, ())) == turns:
                this[f"median_{field}"] = statistics.median(this[field])
                pairs = zip(this[field], numbers[OURS].get(field, ()))
                this[f"{field}_over_ours"] = statistics.median([a / b for a, b in pairs if b] or [np.nan])


def _compare_weights(problem: Problem, present: dict[str, Contender], numbers: Numbers) -> None:
    """Train two rounds without dropout, one contender after the other; say how far the weights are from ours.

    Our further settings are left out; a contender that fails is taken out of `present`.
    """
    start, reached = given.weights(problem), {}
    change: dict[str, float] = {}
    for name, contender in list(present.items()):
        if name.startswith(OURS) and name != OURS:
            continue
        path = problem.folder / "reached.npz"
        with started(problem, {name: contender}) as running:
            try:
                if name not in running:
                    raise Lost("it did not start")
                facts = running[name].ask(COMPARED_ROUNDS, evaluate=True, save=str(path))
            except Lost as error:
                numbers[name]["missing"] = f"failed: {error}"
                del present[name]
                continue
        with np.load(path) as file:
            reached[name] = dict(file)
        distance = {key: float(np.abs(w - start[key]).max()) for key, w in reached[name].items()}
        change[name] = max(distance.values())
        numbers[name]["without_dropout"] = {"rounds": COMPARED_ROUNDS, "test_loss": facts["test_loss"]}
    for name, weights in reached.items():
        if OURS in reached:
            apart = max(float(np.abs(w - reached[OURS][key]).max()) for key, w in weights.items())
            numbers[name]["without_dropout"] |= {"max_difference_to_ours": apart, "max_change": change[name]}


def _turn(
    running: dict[str, Process], numbers: Numbers, first: int, rounds: int
) -> dict[str, dict[str, Any]]:
    answers = {}
    for name in rotated(list(running), first):
        try:
            answers[name] = running[name].ask(rounds)
            answers[name]["test_loss"] = running[name].ask(0, evaluate=True)["test_loss"]
        except Lost as error:
            numbers[name]["missing"] = f"failed: {error}"
            del running[name]
    return answers


def show(case: Mapping[str, Any]) -> None:
    """Print one model's table."""
    from rich.console import Console
    from rich.table import Table

    size = f"{case['cohort']} of {case['clients']} clients, {case['gflop_per_round']:.3g} GFLOP a round"
    table = Table(title=f"{case['model']}: {size}")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for name, this in case["contenders"].items():
        if "median_seconds" not in this:
            table.add_row(name, this.get("missing", "failed"))
            continue
        cells = []
        for field in ("seconds", "cpu_seconds"):
            cells += [f"{this[f'median_{field}']:.3f}", f"{this[f'{field}_over_ours']:.2f}"]
        cells += [f"{this['first_round_s']:.2f}", f"{this.get('compile_s', 0):.1f}"]
        apart = this.get("without_dropout", {}).get("test_loss", np.nan)
        table.add_row(
            name, *cells, " to ".join(f"{this['test_losses'][i]:.3f}" for i in (0, -1)), f"{apart:.5f}"
        )
    Console(width=130).print(table)
