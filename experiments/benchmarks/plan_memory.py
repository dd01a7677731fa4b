"""`medvfm plan`'s memory against the memory a step takes: three configurations on this machine's CPU.

    python -m experiments.benchmarks.plan_memory [--only decoder] [--out FILE]

Predicted: the peak of `medvfm plan --topology cpu --json`, in a process of its own.  Measured: another fresh process
compiles the same step, runs it once to warm up, gives back what all that took, notes its resident memory, resets the
kernel's record of the peak (`/proc/self/clear_refs`), makes weights, state and batch, runs two steps and reads the
peak again (VmHWM); the difference is what the step took.  Blocks above 64 KiB come from and go back to the system at
once (MALLOC_MMAP_THRESHOLD_), so that what compiling left behind cannot be used again unseen.  XLA's flags are those of
the command line on both sides.  error: predicted over measured, less one.  Linux.

Writes runs/benchmarks/plan_memory.json.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvfm_jax import cpu
from medvfm_jax.bench.machine import environment, memory_mib

MODULE = "experiments.benchmarks.plan_memory"
# What dominates differs: the optimiser's state and decoder activations; gradients through TinyViT; frozen weights.
CASES: Mapping[str, dict[str, Any]] = {
    "decoder": {
        "model": "lite-medsam",
        "adapter": "decoder",
        "global_batch": 2,
        "prompts_per_image": 0,
        "embeddings": "off",
    },
    "samed": {"model": "lite-medsam", "adapter": "samed", "global_batch": 2, "accumulate": 2},
    "sam-b": {"model": "sam-b", "adapter": "samed", "global_batch": 1, "image_size": 256},
}
_ALWAYS = {"dtype": "float32", "topology": "cpu"}
_BLOCK = 1 << 16


def predict(settings: Mapping[str, Any]) -> dict[str, float]:
    """{"peak_mib", "arguments_mib", "temporaries_mib"} by the command itself."""
    words = [w for name, value in settings.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    memory = _run([sys.executable, "-m", "medvfm_jax.cli.main", "plan", "--json", *words])["memory"]
    return {f"{name}_mib": memory[name] / 2**20 for name in ("peak", "arguments", "temporaries")}


def measure(settings: Mapping[str, Any]) -> dict[str, float]:
    """{"peak_mib", "arguments_mib"} above the baseline, in a fresh process."""
    return _run([sys.executable, "-m", MODULE, "--worker", json.dumps(dict(settings))])


def work(settings: Mapping[str, Any]) -> dict[str, float]:
    """The measurement, in this process."""
    cpu.tune()
    import jax

    from medvfm_jax.parallel import RULES, make_mesh
    from medvfm_jax.plan.abstract_training import abstract_training, lower
    from medvfm_jax.settings import PlanConfig

    config = PlanConfig(**settings)
    training = abstract_training(config)
    step = lower(training, RULES[config.rules](), make_mesh(config.mesh)).compile()
    arguments = (training.params, training.state, training.batch)
    jax.clear_caches()
    _once(step, arguments)  # threads and pages of code are there after this
    return _once(step, arguments)


def _once(step: Any, shapes: Any) -> dict[str, float]:
    """Make the arguments, run two steps, forget everything."""
    import jax
    import jax.numpy as jnp

    def filled(shape: Any) -> Any:
        if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.full(shape.shape, 0.01, shape.dtype)  # written, therefore resident

    _give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    baseline = memory_mib("VmRSS")
    params, state, batch = jax.block_until_ready(jax.tree.map(filled, shapes))
    held = memory_mib("VmRSS")
    for _ in range(2):
        state, metrics = jax.block_until_ready(step(params, state, batch))
    return {
        "peak_mib": memory_mib("VmHWM") - baseline,
        "arguments_mib": held - baseline,
        "baseline_mib": baseline,
        "loss": float(metrics["loss"]),
    }


def compare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides of one configuration and the error of the prediction."""
    predicted, measured = predict(settings), measure(settings)
    return {
        "settings": dict(settings),
        "predicted": predicted,
        "measured": measured,
        "error": predicted["peak_mib"] / measured["peak_mib"] - 1,
    }


def _give_back() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run(command: list[str]) -> dict[str, Any]:
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(_BLOCK), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:6])}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Compare all configurations, or be one side of one."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--only", choices=CASES, action="append", help="only this configuration")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/plan_memory.json"))
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        print(json.dumps(work(json.loads(args.worker))))
        return
    result: dict[str, Any] = {"benchmark": MODULE, "environment": environment(), "cases": {}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.only or CASES:
        case = compare(CASES[name] | _ALWAYS)
        predicted, measured = case["predicted"]["peak_mib"], case["measured"]["peak_mib"]
        print(
            f"{name}: predicted {predicted:.0f} MiB, measured {measured:.0f} MiB, {case['error']:+.1%}",
            flush=True,
        )
        result["cases"][name] = case
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
