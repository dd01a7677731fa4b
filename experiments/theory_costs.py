r"""What each tool of `medvfm analyze` costs on LiteMedSAM with LoRA: processor seconds, gradients, peak memory.

python -m experiments.theory_costs --data DATA/dsb2018

Every tool is a command in a process of its own, with the import and, where the cache of compiled programs does not have
them, compilation; seconds are of the processor, all threads, and memory is the largest resident set.  A tool that is in
the table already is kept, so it can be stopped and started again; remove its row to measure it anew.  Gradients are
counted from the settings: a product with second derivatives counts as two.
"""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions

RESULTS = Path(__file__).parent / "results" / "theory_costs.json"
LORA = ("--adapter", "lora")
SITES = 8  # of the nuclei


class Tool(NamedTuple):
    """Words after the name of the command, and how many gradients of the loss or of logits, or forward passes."""

    words: tuple[str, ...]
    gradients: int
    passes: int


TOOLS: Mapping[str, Tool] = {
    "receptive-field": Tool(("--models", "lite-medsam", "--probes", "2"), 8, 0),
    "transferability": Tool(("--models", "lite-medsam", "--cases", "16"), 0, 16),
    "divergence": Tool(("--models", "lite-medsam", "--cases", "8"), 0, 6 * 8),
    "kernel": Tool(("--model", "lite-medsam", "--adapters", "lora", "--cases", "2", "--outputs", "4"), 8, 2),
    "placement": Tool(("--model", "lite-medsam", "--cases", "2"), 2, 0),
    "curvature": Tool(
        ("--model", "lite-medsam", *LORA, "--cases", "2", "--probes", "1", "--iterations", "4"), 2 * 2 * 4, 2
    ),
    "conflict": Tool(("--model", "lite-medsam", *LORA, "--cases", "2"), 2 * SITES, 2 * SITES * SITES),
    "drift": Tool(
        ("--model", "lite-medsam", *LORA, "--cases", "2", "--no-simulate"), 2 * SITES + 2 * 2 * 2 * SITES, 0
    ),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the table."""

    data: str
    """Folder dsb2018."""
    tools: tuple[str, ...] = tuple(TOOLS)
    """Tools to measure, in this order."""
    timeout: float = 3600.0
    """Seconds after which a tool is given up."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Measure what is not there yet; the table is written after each tool."""
    console = Console(highlight=False)
    table = run_directory.read_record(results) if results.exists() else {"tools": {}}
    for name in plan.tools:
        if name in table["tools"]:
            continue
        words = (*TOOLS[name].words, *(() if name == "receptive-field" else ("--data", plan.data)))
        table["tools"][name] = measured(name, words, plan.timeout)
        table |= {"versions": versions(), "device": device()}
        run_directory.write_json(results, table)
        console.print(name, table["tools"][name], markup=False)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def measured(name: str, words: tuple[str, ...], timeout: float) -> dict[str, Any]:
    """Run a tool and wait for it; raises CalledProcessError with what it said where it fails."""
    command = [sys.executable, "-m", "medvfm_jax", "analyze", name, *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        clock = threading.Timer(timeout, process.kill)
        clock.start()
        text = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        clock.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=text[-2000:])
    return {
        "words": [word for word in words if "/" not in word],
        "processor_seconds": used.ru_utime + used.ru_stime,
        "megabytes": used.ru_maxrss / 1024,
        "gradients": TOOLS[name].gradients,
        "passes": TOOLS[name].passes,
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The table as text."""
    lines = [
        "| tool | settings | gradients | forward passes | processor seconds | peak memory, MB |",
        "|---" * 6 + "|",
    ]
    for name, row in table["tools"].items():
        settings = " ".join(word for word in row["words"] if word != "--data")
        lines.append(
            f"| {name} | `{settings}` | {row['gradients']} | {row['passes']} | {row['processor_seconds']:.0f} | "
            f"{row['megabytes']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(tyro.cli(Plan))
