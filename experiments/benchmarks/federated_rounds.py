"""Federated rounds per second against pfl-research and Flower's simulation; memory and time of a LoRA cohort.

    python -m venv pfl-env && pfl-env/bin/pip install "pfl[pytorch]==0.6.0" torch==2.13.0
    python -m venv flower-env && flower-env/bin/pip install "flwr[simulation]==1.42.0" torch==2.13.0
    python -m experiments.benchmarks.federated_rounds --pfl-python pfl-env/bin/python \\
        --flower-python flower-env/bin/python [--part rounds|cohort] [--quick]

Rounds: the protocol of pfl-research's CIFAR-10 benchmark, see `federated_problem`, with its CNN (1.6 million weights,
250 GFLOP per round) and with a linear classifier (0.3 GFLOP), where the engine itself is what costs.  Each contender
is a process that runs rounds when asked; they take turns in rotating order, so that a slow moment hits all.  Loading
and compilation are over before, and reported apart.  Besides seconds, the processor time of all processes of a
contender is counted: it says more where other programs run on the same machine.  First, without dropout, all train
from the same weights on the same cohorts, and their weights are compared; in the timed runs, with dropout, their
losses on test images.  The linear classifier agrees within 2e-8.  Our CNN convolves by Winograd's method, whose
rounding errors of 1e-6 now and then make another of four nearly equal values the largest of its window, and with it
the gradient goes elsewhere: of four clients three agreed with PyTorch within 2e-7 after their five steps, one within
2e-3; with the plain convolution, or in float64, all agree (1e-7, 4e-8).  A contender without an environment is left
out and the table says so.

Cohort: FedAvg on LoRA deltas (rank 4, q and v) of LiteMedSAM's shapes with random weights, 1 to 64 clients, each
size in a fresh process: see `federated_cohort`.

Writes runs/benchmarks/federated_rounds.json after each turn.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.benchmarks import federated_cohort
from experiments.benchmarks import federated_problem as given
from experiments.benchmarks.federated_contender import Contender
from experiments.benchmarks.federated_turns import OURS, measure, show
from experiments.benchmarks.harness import limit_threads
from experiments.benchmarks.table import environment


def main() -> None:
    args = arguments()
    limit_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"benchmark": "experiments.benchmarks.federated_rounds", "quick": args.quick}
    result |= {"environment": environment(args.threads), "rounds": [], "cohort": []}
    if "rounds" in args.part:
        with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as folder:
            given.write(Path(folder), args.clients)
            for model in args.model:
                problem = given.Problem(Path(folder), model, True, args.cohort, args.threads)
                done = result["rounds"]

                def keep(case: dict[str, Any], done: list = done) -> None:
                    args.out.write_text(json.dumps(result | {"rounds": [*done, case]}, indent=1) + "\n")

                done.append(measure(problem, contenders(args, model), args.rounds, keep))
                show(result["rounds"][-1])
    if "cohort" in args.part:
        for clients, chunk in ((n, chunk) for chunk in args.chunk for n in args.sizes if n >= chunk):
            result["cohort"].append(federated_cohort.alone(clients, chunk, args.threads))
            args.out.write_text(json.dumps(result, indent=1) + "\n")
        federated_cohort.show(result["cohort"])
    result["environment"]["load_at_end"] = environment(args.threads)["load_at_start"]
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {args.out}")


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--pfl-python", default=None, help="interpreter of an environment with pfl-research")
    parser.add_argument(
        "--flower-python", default=None, help="interpreter of an environment with Flower and Ray"
    )
    parser.add_argument("--part", nargs="+", choices=("rounds", "cohort"), default=["rounds", "cohort"])
    parser.add_argument("--model", nargs="+", choices=("cnn", "linear"), default=["cnn", "linear"])
    parser.add_argument("--only", nargs="+", default=None, help="contenders whose name is one of these")
    parser.add_argument("--rounds", type=int, default=None, help="timed turns (default 7, quick 2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=None, help="population (default 1000, quick 100)")
    parser.add_argument("--cohort", type=int, default=None, help="clients of a round (default 50, quick 10)")
    parser.add_argument("--sizes", type=int, nargs="+", default=None, help="sizes of LoRA cohorts")
    parser.add_argument("--chunk", type=int, nargs="+", default=[1, 4], help="LoRA clients at once")
    parser.add_argument("--quick", action="store_true", help="small; for development")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/federated_rounds.json"))
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 7)
    args.clients = args.clients or (100 if args.quick else 1000)
    args.cohort = args.cohort or (10 if args.quick else 50)
    args.sizes = args.sizes or ([1, 4] if args.quick else [1, 4, 16, 64])
    return args


def contenders(args: argparse.Namespace, model: str) -> dict[str, Contender | str]:
    """By name; a sentence instead of a contender says why it is missing."""
    here = "experiments.benchmarks."
    ours: dict[str, dict[str, Any]] = {OURS: {"backend": "vmap", "chunk": None}}
    if model == "cnn":  # on two cores, one client at a time stays in the cache
        ours = {
            OURS: {"backend": "vmap", "chunk": 1},
            f"{OURS}, 10 at once": {"backend": "vmap", "chunk": 10},
        }
    found: dict[str, Contender | str] = {
        name: Contender(sys.executable, f"{here}federated_jax", options) for name, options in ours.items()
    }
    peers = {"pfl-research": (args.pfl_python, "pfl"), "Flower": (args.flower_python, "flower")}
    for name, (python, short) in peers.items():
        missing = f"left out: no --{short}-python was given"
        found[name] = Contender(python, f"{here}federated_{short}", {}) if python else missing
    return {name: c for name, c in found.items() if args.only is None or name in {OURS, *args.only}}


if __name__ == "__main__":
    main()
