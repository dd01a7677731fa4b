"""Rounds of adapter deltas on one frozen backbone, with and without a cache, against pfl-research, Flower and BlazeFL.

    python -m venv pfl-env && pfl-env/bin/pip install "pfl[pytorch]==0.6.0" torch==2.13.0
    python -m venv flower-env && flower-env/bin/pip install "flwr[simulation]==1.42.0" torch==2.13.0
    python3.12 -m venv blaze-env && blaze-env/bin/pip install "blazefl[contrib,reproducibility]==2.0.3" torch==2.13.0
    python -m experiments.benchmarks.federated_adapters --pfl-python pfl-env/bin/python \\
        --flower-python flower-env/bin/python --blazefl-python blaze-env/bin/python [--clients 500] [--turns 3] \\
        [--case 0 1 2 3] [--devices 2 --threads 2]

The problem is that of `federated_adapter_problem`: segmentation of discs by a LoRA and a head, 577 trained numbers, on
a frozen backbone.  Cases: cohorts of 1 to 10 % of the clients; each contender with embeddings made once ("cached") and
with the backbone in every step; updates shared, shared with clipping and central noise (BlazeFL has none), or with a
personal head (ours alone: the peers' simulators have no such algorithm of their own).  First all contenders of a case
train three rounds from the same weights and their weights are compared (without noise).  Each trains on until the Dice
on 100 test pictures reaches a target, looked at every few rounds, or its patience ends; it goes on from the rounds
before, so that everybody without noise needs the same number of rounds.  Starting, loading and compiling, which JAX
does before and PyTorch not, are no part of it: they are reported apart ("ready_cpu_seconds", "compile_s").  Then they
take turns in rotating order; processor time of all processes of a contender counts, and ratios are taken within a
turn.  ``--devices 2 --threads 2`` adds ours with the cohort over two devices of the CPU: there seconds count, on an
idle machine.

Writes experiments/results/benchmark_federated_adapters.json after each case.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks.federated_contender import Contender, Lost, started
from experiments.benchmarks.harness import limit_threads
from experiments.benchmarks.table import environment
from medvfm_jax.bench.turns import rotated

OURS = "medvfm_jax"
RESULT = Path(__file__).parents[1] / "results" / "benchmark_federated_adapters.json"
COMPARED_ROUNDS = 3
# Rounds: a turn of each takes a second or so.
PER_TURN = {OURS: 20, "pfl-research": 2, "Flower": 1, "BlazeFL": 2}
MOST_ROUNDS = 300


def main() -> None:
    """Measure and write."""
    args = arguments()
    limit_threads(args.threads)
    result: dict[str, Any] = {
        "benchmark": "experiments.benchmarks.federated_adapters",
        "clients": args.clients,
        "target_dice": args.target,
        "environment": environment(args.threads),
        "cases": _others(args) if args.case else [],
    }
    if args.case and args.out.exists():  # what else the file holds, such as earlier runs, stays
        result = json.loads(args.out.read_text()) | result
    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as name:
        folder = Path(name)
        given.write(folder, args.clients)
        for number, (cohort, private, personal) in enumerate(cases(args)):
            if args.case and number not in args.case:
                continue
            case = measure(args, folder, cohort, private, personal)
            result["cases"].append(case)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
            show(case)
    print(f"wrote {args.out}")


def _others(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Cases of the file that are not measured anew."""
    if not args.out.exists():
        return []
    names = ("cohort", "private", "personal")
    anew = [dict(zip(names, case)) for i, case in enumerate(cases(args)) if i in args.case]
    kept = json.loads(args.out.read_text())["cases"]
    return [case for case in kept if {name: case[name] for name in names} not in anew]


def cases(args: argparse.Namespace) -> list[tuple[int, bool, bool]]:
    """(cohort, private, personal): shared updates with every cohort, the two other ways with the first."""
    first, *more = [max(2, round(share * args.clients)) for share in args.shares]
    shared = [(cohort, False, False) for cohort in (first, *more)]
    return [*shared, (first, True, False), (first, False, True)]


def contenders(
    args: argparse.Namespace, plain: bool, private: bool, personal: bool
) -> dict[str, tuple[Contender, bool]]:
    """Name -> (contender, whether embeddings are cached); plain: those of ``--uncached`` without a cache too."""
    here = "experiments.benchmarks.federated_adapter_"
    programs = {OURS: Contender(sys.executable, f"{here}jax", {"backend": "vmap"})}
    for devices in args.devices:
        programs[f"{OURS} on {devices} devices"] = Contender(
            sys.executable, f"{here}jax", {"devices": devices}
        )
    if not personal:
        for name, python, short in (
            ("pfl-research", args.pfl_python, "pfl"),
            ("Flower", args.flower_python, "flower"),
            ("BlazeFL", None if private else args.blazefl_python, "blazefl"),
        ):
            if python:
                programs[name] = Contender(python, f"{here}{short}", {})
    return {
        f"{name}, {'cached' if cached else 'no cache'}": (program, cached)
        for cached in (True, False)
        for name, program in programs.items()
        if cached or (name in args.uncached and plain)
    }


def measure(
    args: argparse.Namespace, folder: Path, cohort: int, private: bool, personal: bool
) -> dict[str, Any]:
    """All numbers of one case."""
    found: dict[str, dict[str, Any]] = {}
    problems = {c: given.Problem(folder, cohort, c, private, personal, args.threads) for c in (True, False)}
    running, stacks = {}, []
    plain = not (private or personal) and cohort == cases(args)[0][0]  # the case without a cache too
    for number, (name, (program, cached)) in enumerate(contenders(args, plain, private, personal).items()):
        apart = folder / f"logs_{number}"
        apart.mkdir(exist_ok=True)
        context = started(_Logged(problems[cached], apart), {name: program})
        processes = context.__enter__()
        stacks.append(context)
        if name in processes:
            running[name] = processes[name]
            found[name] = {"versions": program.versions(), "cached": cached} | processes[name].loaded
        else:
            found[name] = {"missing": "did not start"}
    try:
        _compare(folder, running, found, private)
        _until_target(args, running, found)
        for turn in range(args.turns):
            for name in rotated(list(running), turn):
                rounds = PER_TURN[OURS if name.startswith(OURS) else name.split(",")[0]]
                facts = running[name].ask(rounds)
                this = found[name]
                for field in ("seconds", "cpu_seconds"):
                    this.setdefault(field, []).append(facts[field] / rounds)
    finally:
        for context in reversed(stacks):
            context.__exit__(None, None, None)
    _summarise(found)
    return {
        "cohort": cohort,
        "private": private,
        "personal": personal,
        "gflop_per_round": {
            "cached": given.gflop_of_round(cohort, True),
            "no cache": given.gflop_of_round(cohort, False),
        },
        "end": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "contenders": found,
    }


class _Logged:
    """A problem as a contender's process is told it, with a folder of its own for its log."""

    def __init__(self, problem: given.Problem, folder: Path):
        self._problem, self.folder = problem, _Both(problem.folder, folder)

    def _asdict(self) -> dict[str, Any]:
        return self._problem._asdict()


class _Both:
    """The folder of the data in words; files that are put below it go to another."""

    def __init__(self, data: Path, files: Path):
        self._data, self._files = data, files

    def __str__(self) -> str:
        return str(self._data)

    def __truediv__(self, name: str) -> Path:
        return self._files / name


def _compare(folder: Path, running: dict[str, Any], found: dict[str, dict[str, Any]], private: bool) -> None:
    reached = {}
    for name in list(running):
        path = folder / "reached.npz"
        try:
            facts = running[name].ask(COMPARED_ROUNDS)
            facts |= {"test_loss": running[name].ask(0, evaluate=True, save=str(path))["test_loss"]}
        except Lost as error:
            found[name]["missing"] = f"failed: {error}"
            del running[name]
            continue
        with np.load(path) as file:
            reached[name] = dict(file)
        spent = {"rounds": COMPARED_ROUNDS} | {field: facts[field] for field in ("seconds", "cpu_seconds")}
        found[name] |= {"dice_after_compared": facts["test_loss"], "to_target": spent}
    first = next(iter(reached.values()))
    for name, weights in reached.items():
        if not private:
            apart = max(float(np.abs(w - first[key]).max()) for key, w in weights.items())
            found[name]["max_difference_to_ours"] = apart


def _until_target(
    args: argparse.Namespace, running: dict[str, Any], found: dict[str, dict[str, Any]]
) -> None:
    """Train on until the target; the rounds that were compared count."""
    for name, process in running.items():
        this = found[name]
        dice, spent = this["dice_after_compared"], this["to_target"]
        while dice < args.target and spent["rounds"] < MOST_ROUNDS and spent["seconds"] < args.patience:
            facts = process.ask(args.look_every)  # looking is not timed
            dice = process.ask(0, evaluate=True)["test_loss"]
            for field, more in (
                ("rounds", args.look_every),
                *((f, facts[f]) for f in ("seconds", "cpu_seconds")),
            ):
                spent[field] += more
        spent |= {"dice": dice, "reached": dice >= args.target}


def _summarise(found: dict[str, dict[str, Any]]) -> None:
    ours = {c: found.get(f"{OURS}, {c}", {}) for c in ("cached", "no cache")}
    for this in found.values():
        if "cpu_seconds" not in this:
            continue
        for field in ("seconds", "cpu_seconds"):
            this[f"median_{field}"] = statistics.median(this[field])
            for cached, mine in ours.items():
                if field in mine:
                    ratios = [a / b for a, b in zip(this[field], mine[field]) if b]
                    this[f"{field}_over_ours_{cached.replace(' ', '_')}"] = statistics.median(
                        ratios or [np.nan]
                    )


def show(case: dict[str, Any]) -> None:
    """Print one case."""
    kind = "personal head" if case["personal"] else "private" if case["private"] else "shared"
    print(f"{case['cohort']} clients a round, {kind}")
    for name, this in case["contenders"].items():
        if "median_cpu_seconds" not in this:
            print(f"  {name}: {this.get('missing')}")
            continue
        spent = this["to_target"]
        print(
            f"  {name}: {this['median_cpu_seconds'] * 1e3:.2f} ms CPU, {this['median_seconds'] * 1e3:.2f} ms a round, "
            f"x{this.get('cpu_seconds_over_ours_cached', np.nan):.2f} ours cached; Dice {spent['dice']:.3f} after "
            f"{spent['rounds']} rounds, {spent['cpu_seconds']:.2f} s CPU, {spent['seconds']:.2f} s, and to start "
            f"{this['ready_cpu_seconds']:.2f} s CPU (compiled in {this.get('compile_s', 0):.2f} s); apart "
            f"{this.get('max_difference_to_ours', np.nan):.1e}",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    """As in the module's text."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--pfl-python", default=None, help="interpreter of an environment with pfl-research")
    parser.add_argument("--flower-python", default=None, help="of one with Flower and Ray")
    parser.add_argument("--blazefl-python", default=None, help="of one with BlazeFL, Python 3.12 or newer")
    parser.add_argument(
        "--devices", type=int, nargs="*", default=[], help="ours on so many devices of the CPU too"
    )
    parser.add_argument(
        "--uncached", nargs="*", default=[OURS, "pfl-research", "BlazeFL"], help="who also runs without"
    )
    parser.add_argument(
        "--case", type=int, nargs="+", help="numbers of cases, from 0; the file keeps the others"
    )
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.02, 0.1], help="of the clients in a round"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.69, help="Dice")
    parser.add_argument("--look-every", type=int, default=5, help="rounds between two looks at the Dice")
    parser.add_argument(
        "--patience", type=float, default=30.0, help="seconds after which a contender gives up"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
