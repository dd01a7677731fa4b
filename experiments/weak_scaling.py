"""Weak scaling from plans: the same work per chip on ever larger slices; what is sent, and what of a step is left.

tpu/plan.sh runs/scaling < tpu/scaling.txt
python -m experiments.weak_scaling runs/scaling/*.json

Every row is a program compiled for its slice (`medvfm plan`), so payloads and kinds of collectives are the
compiler's.  Efficiency is the estimated step without its collectives over the step with them: nothing overlaps,
and no estimate was compared with a TPU.  Hosts that wait for each other, or for data, are not in it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

_COLUMNS = (
    "slice",
    "chips",
    "images per step",
    "sent per chip",
    "collectives",
    "step (estimate)",
    "efficiency",
)


@dataclass(frozen=True)
class Plans:
    """Files to compare."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files of `medvfm plan --json`."""


def rows(plans: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row per plan, fewest chips first; those without a program or an estimate of time are left out."""
    timed = [plan for plan in plans if plan["program"] and plan["speed"]]
    return [_row(plan) for plan in sorted(timed, key=lambda p: (p["devices"], p["config"]["topology"]))]


def _row(plan: Mapping[str, Any]) -> tuple[str, ...]:
    speed, collectives = plan["speed"], plan["program"]["collectives"]
    sent = sum(one["sent"] for one in collectives)
    return (
        plan["config"]["topology"],
        str(plan["devices"]),
        str(plan["config"]["global_batch"]),
        f"{sent / 2**20:.1f} MiB",
        f"{1e3 * speed['collectives']:.2f} ms",
        f"{1e3 * speed['step']:.1f} ms",
        f"{100 * efficiency(speed):.1f} %",
    )


def efficiency(speed: Mapping[str, float]) -> float:
    """Of the step: what is not spent on collectives."""
    return 1 - speed["collectives"] / speed["step"]


def markdown(table: Iterable[tuple[str, ...]]) -> str:
    """As a table for tpu/README.md."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    chosen = tyro.cli(Plans)
    print(markdown(rows(json.loads(file.read_text()) for file in chosen.files)))
