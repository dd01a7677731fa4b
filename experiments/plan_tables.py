"""Tables for tpu/README.md from plans: what was planned, and weak scaling, the same work per chip on larger slices.

tpu/plan.sh tpu/plans < tpu/plans.txt       && python -m experiments.plan_tables tpu/plans/*.json
tpu/plan.sh runs/scaling < tpu/scaling.txt  && python -m experiments.plan_tables --scaling runs/scaling/*.json

Every row is a program compiled for its slice (`medvfm plan`), so memory, payloads and kinds of collectives are the
compiler's.  Efficiency is the estimated step without its collectives over the step with them: nothing overlaps, and no
estimate was compared with an accelerator.  Hosts that wait for each other, or for data, are not in it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from medvfm_jax.settings.plan import PlanConfig

Row = tuple[str, ...]
PLANS: Row = (
    "model, what trains",
    "slice, mesh",
    "images",
    "parts, kept",
    "memory",
    "model FLOPs",
    "traffic",
    "sent",
    "time (estimate)",
    "utilisation",
)
SCALING: Row = (
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
    scaling: bool = False
    """Weak scaling instead of the plans themselves."""


def plan_rows(plans: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row per plan; memory, traffic and bytes sent are those of one device."""
    return [_plan_row(plan) for plan in plans]


def scaling_rows(plans: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One row per plan, fewest chips first; those without a program or an estimate of time are left out."""
    timed = [plan for plan in plans if plan["program"] and plan["speed"]]
    return [
        _scaling_row(plan) for plan in sorted(timed, key=lambda p: (p["devices"], p["config"]["topology"]))
    ]


def efficiency(speed: Mapping[str, float]) -> float:
    """Of the step: what is not spent on collectives."""
    return 1 - speed["collectives"] / speed["step"]


def markdown(columns: Row, table: Iterable[Row]) -> str:
    """As a table for tpu/README.md."""
    lines = [columns, ("---",) * len(columns), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plan_row(plan: Mapping[str, Any]) -> Row:
    config, memory, program, speed = (plan[name] for name in ("config", "memory", "program", "speed"))
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    rules = "" if config["rules"] == "replicated" else f", {config['rules']}"
    clients = f", a round of {config['clients']} clients" if "clients" in config else ""
    images = config["global_batch"] * config.get("local_steps", 1)
    unrolled = config["unrolled"] if "unrolled" in config else not config["scan_blocks"]
    fits = "" if memory["fits"] else ", does not fit"
    return (
        f"{config['model']}, {config['adapter']}{clients}",
        f"{config['topology']}, {mesh}{rules}",
        f"{images:,}",
        f"{config['accumulate']}, {config.get('keep', '-')}" + (", unrolled" if unrolled else ""),
        f"{memory['peak'] / 2**30:.1f} of {memory['capacity'] / 2**30:.0f} GiB{fits}",
        f"{plan['flops']['model'] / 1e12:,.0f} TFLOP ({plan['flops']['executed'] / 1e12:,.0f} executed)",
        f"{program['traffic'] / 2**30:.0f} GiB" if program else "-",
        _sent(program["collectives"]) if program else "-",
        f"{speed['step']:.2f} s" if speed else "-",
        _utilisation(speed) if speed else "-",
    )


def _utilisation(speed: Mapping[str, Any]) -> str:
    """A range, from kernels at their assumed worst to kernels at their bound; worked out here for plans without it.

    Of a GPU, whose compiler counts no cycles, a bound.
    """
    if "slow_step" in speed:
        slow = speed["slow_step"]
    else:
        kernels = speed.get("kernels", 0.0) / PlanConfig.kernel_efficiency
        slow = (
            max(speed.get("roofline", 0.0), (speed.get("compiler") or 0.0) + kernels) + speed["collectives"]
        )
    best = speed["utilisation"]
    low, high = (round(100 * share) for share in (best * speed["step"] / max(slow, speed["step"]), best))
    if speed.get("compiler") is None:
        return f"at most {high} %"
    return f"{high} %" if low == high else f"{low} to {high} %"


def _scaling_row(plan: Mapping[str, Any]) -> Row:
    speed = plan["speed"]
    return (
        plan["config"]["topology"],
        str(plan["devices"]),
        str(plan["config"]["global_batch"]),
        _sent(plan["program"]["collectives"]),
        f"{1e3 * speed['collectives']:.2f} ms",
        f"{1e3 * speed['step']:.1f} ms",
        f"{100 * efficiency(speed):.1f} %",
    )


def _sent(collectives: Sequence[Mapping[str, Any]]) -> str:
    sent = sum(one["sent"] for one in collectives)
    return f"{sent / 2**30:.1f} GiB" if sent >= 2**30 else f"{sent / 2**20:.1f} MiB"


if __name__ == "__main__":
    chosen = tyro.cli(Plans)
    found = [json.loads(file.read_text()) for file in chosen.files]
    print(markdown(SCALING, scaling_rows(found)) if chosen.scaling else markdown(PLANS, plan_rows(found)))
