"""The main table of a dataset: adapted with few labels, a U-Net from scratch on the same images, zero-shot.

Used by `experiments.nuclei` and `experiments.hippocampus`, which hold settings and results.  Each row is a run
directory made by `adapt` and `evaluate`, exactly as the commands make it; a row that is there is kept, a row
that was interrupted goes on where it was.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from medvfm_jax import compilation_cache, cpu, report
from medvfm_jax.metrics import compare
from medvfm_jax.predict import evaluate
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.train import AdaptConfig, adapt

# Row prefix -> settings of `adapt` that differ from those of the plan.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "samed": {"model": "lite-medsam", "adapter": "samed"},
    "decoder": {"model": "lite-medsam", "adapter": "decoder"},
    "unet": {"model": "unet", "adapter": "full"},
}

PAIRS = (
    ("unet_few", "samed_few"),
    ("unet_few_long", "samed_few"),
    ("unet_all", "samed_all"),
    ("samed_few", "unet3d_few"),
    ("samed_all", "unet3d_all"),
    ("zero_shot", "decoder_few"),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of one table."""

    data: str
    """Folder of the dataset."""
    out: Path
    """Where the run directories go; one per row."""
    few: int = 16
    """Patients of the small training set; it lies inside the large one."""
    steps: int = 200
    """Optimiser steps of every trained row."""
    batch_size: int = 2
    """Images per step of every trained row."""
    long: int = 10
    """The row `unet_few_long` takes this many times the steps: about the same time as an adapted row."""
    cases: int | None = None
    """Score the first so many test patients only."""
    metrics: tuple[str, ...] = ("dice", "hd95")
    """Columns of the table."""
    rows: tuple[str, ...] = (
        "zero_shot", "samed_few", "unet_few", "unet_few_long", "decoder_few", "samed_all", "unet_all"
    )  # fmt: skip
    """Rows to make, in this order."""
    seed: int = 0
    """Of the split, the sampling, the augmentation, the initial values and the bootstrap."""

    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """What the first word of a row stands for."""
        return METHODS

    def pairs(self) -> Sequence[tuple[str, str]]:
        """Rows (a, b) whose cases are compared, b minus a, where both are there."""
        return PAIRS


def run(plan: Plan, results: Path) -> None:
    """Make every row, then the table, `results` as JSON and a report that shows all runs side by side."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    for row in plan.rows:
        _make(plan, row, console)
    table = _table(plan)
    results.parent.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(results, table)
    report.write([plan.out / row for row in plan.rows], plan.out / "comparison.html")
    console.print(markdown(table), markup=False)
    console.print(f"{results}; {plan.out / 'comparison.html'}", markup=False)


def _make(plan: Plan, row: str, console: Console) -> None:
    folder = plan.out / row
    seconds: dict[str, float] = {}
    if (folder / "seconds.json").exists():
        return
    console.print(f"\n{row}", markup=False)
    if row == "zero_shot":
        folder.mkdir(parents=True, exist_ok=True)
        what: dict[str, Any] = {
            "model": "lite-medsam",
            "data": plan.data,
            "out": folder / run_directory.SCORES,
        }
    else:
        config = _config(plan, row)
        if not (folder / run_directory.DELTA).exists():
            seconds["train"] = _timed(lambda: adapt(config))
        what = {"run": folder}
    scoring = EvaluateConfig(cases=plan.cases, seed=plan.seed, **what)
    seconds["evaluate"] = _timed(lambda: evaluate(scoring, console))
    run_directory.write_json(folder / "seconds.json", seconds)


def _config(plan: Plan, row: str) -> AdaptConfig:
    method, amount, *long = row.split("_")
    own = plan.methods()[method]
    steps = own.get("steps", plan.steps) * (plan.long if long else 1)
    settings = {
        "batch_size": plan.batch_size,
        "train_cases": plan.few if amount == "few" else None,
        "validate_every": max(1, steps // 4),
        "validation_images": 24,
        "seed": plan.seed,
    }
    folder = plan.out / row
    return AdaptConfig(
        data=plan.data, out=folder, resume=folder.exists(), **(settings | own | {"steps": steps})
    )


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 1)


def _table(plan: Plan) -> dict[str, Any]:
    rows, scores = {}, {row: run_directory.read_json(plan.out / row / "scores.json") for row in plan.rows}
    for row, record in scores.items():
        config = {} if row == "zero_shot" else run_directory.read_json(plan.out / row / "config.json")
        split = (config.get("resolved") or {}).get("split") or {}
        rows[row] = {
            "model": record["model"],
            "prompt": record["prompt"],
            "trained_on": len(split.get("train", ())),
            "steps": config.get("steps", 0),
            "trained": record["provenance"]["trained"],
            "n_patients": record["n_patients"],
            "summary": [r for r in record["summary"] if r["metric"] in plan.metrics],
            "seconds": run_directory.read_json(plan.out / row / "seconds.json"),
            "ms_per_step": _milliseconds(plan, row),
        }
    differences = {
        f"{b} minus {a}": compare(scores[a]["cases"], scores[b]["cases"], "dice", seed=plan.seed)
        for a, b in plan.pairs()
        if a in scores and b in scores
    }
    first = next(iter(scores.values()))
    return {
        "plan": json.loads(json.dumps(dataclasses.asdict(plan), default=str))
        | {"data": Path(plan.data).name, "out": plan.out.name},
        "profile": first["metric_profile"],
        "data_sha256": first["provenance"]["data_sha256"],
        "versions": versions(),
        "device": device(),
        "rows": rows,
        "paired_dice": differences,
    }


def _milliseconds(plan: Plan, row: str) -> float | None:
    """Median over the lines of training of a step's wall time without compilation, None where nothing is trained."""
    if not (plan.out / row / run_directory.METRICS).exists():
        return None
    lines = run_directory.read_metrics(plan.out / row)
    speeds = [line["images_per_s"] for line in lines if line.get("images_per_s")]
    return round(1e3 * plan.batch_size / statistics.median(speeds), 1) if speeds else None


def markdown(table: dict[str, Any]) -> str:
    """The table as text: mean and 95 % interval over patients, mean over labels."""
    names = list(dict.fromkeys(r["metric"] for row in table["rows"].values() for r in row["summary"]))
    lines = [
        "| row | model | prompts | training cases | steps | " + " | ".join(names) + " |",
        "|---" * (5 + len(names)) + "|",
    ]
    for name, row in table["rows"].items():
        cells = [_cell(row["summary"], metric) for metric in names]
        facts = [name, row["model"], row["prompt"], str(row["trained_on"]), str(row["steps"])]
        lines.append("| " + " | ".join(facts + cells) + " |")
    for name, found in table["paired_dice"].items():
        lines.append(
            f"{name}: Dice {found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f}), "
            f"n = {found['n']}, sign-flip p = {found['p_permutation']:.4f}"
        )
    return "\n".join(lines)


def _cell(summary: list[dict[str, Any]], metric: str) -> str:
    rows = [r for r in summary if r["metric"] == metric]
    row = next((r for r in rows if r["label"] == "all"), rows[0] if rows else None)
    digits = 1 if metric.startswith(("hd", "assd")) else 3
    if row is None:
        return "-"
    mean = f"{row['mean']:.{digits}f}"
    if row["low"] is None:  # one patient has no interval
        return mean
    return f"{mean} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
