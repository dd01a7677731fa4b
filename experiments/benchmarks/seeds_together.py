r"""Seeds of an ablation as one program, against the same runs one after the other.

    python -m experiments.benchmarks.seeds_together --data DATA/dsb2018 --out runs/seeds

LoRA of several ranks on the decoder's attention, on cached embeddings of a frozen encoder: what `medvfm analyze ablate`
does with and without ``--apart``.  Both take turns by rank, in this process, with compiled programs and embeddings of
an earlier turn at hand; processor time and wall-clock time, and the largest difference of what was trained.

Writes experiments/results/benchmark_seeds_together.json.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.benchmarks.table import environment
from medvfm_jax import compilation_cache, cpu
from medvfm_jax.settings import AdaptConfig
from medvfm_jax.train import adapt
from medvfm_jax.train.adaptation import adapt_together
from medvfm_jax.weights import artifacts

PLACE = r"mask_decoder/transformer/(.*/)?(q_proj|v_proj)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--model", default="lite-medsam")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).parents[1] / "results" / "benchmark_seeds_together.json",
    )
    args = parser.parse_args()
    cpu.tune()
    compilation_cache.enable()
    if args.out.exists():
        raise SystemExit(f"{args.out} exists; choose another --out, so that nothing is written over")
    console = Console(highlight=False)
    rows = []
    compared(args, args.ranks[:1], args.out / "first")  # embeddings and programs
    for rank in args.ranks:
        row = compared(args, [rank], args.out)
        rows.append(row)
        console.print(row)
    whole = {
        kind: {name: sum(row[kind][name] for row in rows) for name in rows[0][kind]}
        for kind in ("processor", "wall")
    }
    result = {
        "benchmark": "experiments.benchmarks.seeds_together",
        "environment": environment(0),
        "settings": {k: v for k, v in vars(args).items() if k not in ("data", "out", "results")},
        "ranks": rows,
        "apart over together": {kind: times["apart"] / times["together"] for kind, times in whole.items()},
        "largest difference": max(row["difference"] for row in rows),
    }
    args.results.write_text(json.dumps(result, indent=1) + "\n")
    console.print(result["apart over together"], result["largest difference"])


def compared(args: argparse.Namespace, ranks: Sequence[int], folder: Path) -> dict[str, Any]:
    """One rank both ways: seconds of each, and the largest difference of trained numbers relative to the largest."""
    (rank,) = ranks

    def configs(way: str) -> list[AdaptConfig]:
        return [
            AdaptConfig(
                data=args.data, model=args.model, adapter="lora",
                set=(f"lora.rank={rank}", "lora.slices=none", "lora.layout=none", "lora.head_dim=none",
                     f"lora.at={PLACE}"),
                steps=args.steps, batch_size=2, prompts_per_image=1, validate_every=0, train_cases=args.cases,
                embeddings="disk",
                seed=seed, out=folder / way / f"{rank}_{seed}",
            )
            for seed in range(args.seeds)
        ]  # fmt: skip

    apart = timed(lambda: [adapt(config) for config in configs("apart")])
    together = timed(lambda: adapt_together(configs("together")))
    difference = max(
        _difference(a.delta, b.delta) for a, b in zip(apart["result"], together["result"], strict=True)
    )
    shutil.rmtree(folder / "apart")
    shutil.rmtree(folder / "together")
    return {
        "rank": rank,
        "processor": {"apart": apart["processor"], "together": together["processor"]},
        "wall": {"apart": apart["wall"], "together": together["wall"]},
        "difference": difference,
    }


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """What it returns, with processor and wall-clock seconds."""
    processor, wall = time.process_time(), time.monotonic()
    result = work()
    return {
        "result": result,
        "processor": time.process_time() - processor,
        "wall": time.monotonic() - wall,
    }


def _difference(a: Path, b: Path) -> float:
    first, second = (jax.tree.leaves(artifacts.load_delta(path)[0]) for path in (a, b))
    return max(
        float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-12)) for x, y in zip(first, second, strict=True)
    )


if __name__ == "__main__":
    main()
