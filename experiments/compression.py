"""LiteMedSAM on nuclei with fewer bits, heads, neurons and ranks: size of the file against Dice.

python -m experiments.compression --data DATA/dsb2018 --out runs/compression

Every row is a run directory made by `compress` and scored by `evaluate`, as the commands do it; a row that is there is
kept.  Results go to results/compression.json, the plot to docs/images/compression.svg.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments.pareto_plot import Dot, pareto_plot
from medvfm_jax import compilation_cache, cpu
from medvfm_jax.compress import compress
from medvfm_jax.metrics import compare, summarise
from medvfm_jax.predict import evaluate
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import CompressConfig, EvaluateConfig

WHOLE = "float32"
# Row -> (method, options).
ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "int8": ("weight_only", ("bits=8",)),
    "int4": ("weight_only", ("bits=4",)),
    "int4_sensitive": ("weight_only", ("bits=4", "group=32", "compensate=true", "sensitive=0.1")),
    "w8a8": ("integers", ()),
    "w8a8_grouped": ("grouped_activations", ("candidates=12", "rounds=1")),
    "w6a6_grouped": ("grouped_activations", ("bits=6", "candidates=12", "rounds=1")),
    "w8a8_trained": ("trained_integers", ("steps=48",)),
    "neurons_25": ("prune", ("neurons=0.25",)),
    "neurons_50_heads_20": ("prune", ("neurons=0.5", "heads=0.2")),
    "rank_01": ("low_rank", ("error=0.01",)),
    "rank_05": ("low_rank", ("error=0.05",)),
}
RESULTS = Path(__file__).parent / "results" / "compression.json"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "compression.svg"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the table."""

    data: str
    """Folder of the dataset."""
    out: Path = Path("runs/compression")
    """Where the run directories go; one per row."""
    model: str = "lite-medsam"
    """Model to compress."""
    cases: int = 12
    """Score the first so many test images."""
    calibration: int = 8
    """Images of the training part to calibrate with."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Rows to make, in this order."""
    seed: int = 0
    """Of the split, the prompts, the sampling and the bootstrap."""


def run(plan: Plan, results: Path = RESULTS, plot: Path = PLOT) -> dict[str, Any]:
    """Make every row, then the table as JSON and the plot."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    whole = _scores(plan, WHOLE, {"model": plan.model, "data": plan.data}, console)
    bytes_of, found = {}, {WHOLE: whole}
    for row in plan.rows:
        method, options = ROWS[row]
        folder = plan.out / row
        if not (folder / run_directory.CONFIG).exists():
            config = CompressConfig(
                model=plan.model, method=method, set=options, data=plan.data, cases=plan.calibration,
                seed=plan.seed, out=folder,
            )  # fmt: skip
            result = compress(config, lambda text: console.print(text, markup=False, soft_wrap=True))
            bytes_of[WHOLE] = result.bytes_before
            run_directory.write_json(folder / "size.json", {"bytes_before": result.bytes_before})
        bytes_of[row] = (folder / run_directory.DELTA).stat().st_size
        found[row] = _scores(plan, row, {"run": folder}, console)
    sizes = (plan.out / row / "size.json" for row in plan.rows)
    before = next(run_directory.read_record(path)["bytes_before"] for path in sizes if path.exists())
    table = table_of(plan, {WHOLE: before, **bytes_of}, found)
    results.parent.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(results, table)
    plot.write_text(plot_of(table))
    console.print(markdown(table), markup=False)
    return table


def _scores(plan: Plan, row: str, what: dict[str, Any], console: Console) -> dict[str, Any]:
    out = plan.out / f"{row}_scores.json"
    if not out.exists():
        config = EvaluateConfig(**what, cases=plan.cases, seed=plan.seed, save_predictions=False, out=out)
        evaluate(config, console)
    return run_directory.read_record(out)


def table_of(
    plan: Plan, bytes_of: Mapping[str, int], scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Bytes and scores of every row on the cases that all have, and the paired difference from the whole model."""
    first = scores[WHOLE]
    common = set.intersection(*({row["case"] for row in record["cases"]} for record in scores.values()))
    cases = {row: [c for c in record["cases"] if c["case"] in common] for row, record in scores.items()}
    budgets = {}
    for row, record in scores.items():
        summary = summarise(cases[row], seed=plan.seed)["summary"]
        dice = next(r for r in summary if r["metric"] == "dice")
        budgets[row] = {
            "method": ROWS[row][0] if row in ROWS else None,
            "options": list(ROWS[row][1]) if row in ROWS else [],
            "facts": {
                k: v for k, v in record.get("compression", {}).items() if k not in ("method", "options")
            },
            "bytes": bytes_of[row],
            "share": bytes_of[row] / bytes_of[WHOLE],
            "dice": {name: dice[name] for name in ("mean", "low", "high", "n")},
            "paired_dice": None
            if row == WHOLE
            else compare(cases[WHOLE], cases[row], "dice", seed=plan.seed),
        }
    return {
        "plan": {
            "model": plan.model,
            "cases": len(common),
            "calibration": plan.calibration,
            "seed": plan.seed,
        },
        "data": first["data"],
        "data_sha256": first["provenance"]["data_sha256"],
        "profile": first["metric_profile"],
        "versions": versions(),
        "device": device(),
        "budgets": budgets,
    }


def plot_of(table: Mapping[str, Any]) -> str:
    """SVG of megabytes against Dice."""
    dots = [Dot(name, row["bytes"] / 1e6, row["dice"]["mean"]) for name, row in table["budgets"].items()]
    title = f"{table['plan']['model']} on {table['plan']['cases']} test images of {table['data']}"
    return pareto_plot(title, dots, "megabytes of the file", "Dice")


def markdown(table: Mapping[str, Any]) -> str:
    """The table as text."""
    lines = [
        "| row | command | megabytes | of float32 | Dice | minus float32, the same images |",
        "|---" * 6 + "|",
    ]
    for name, row in table["budgets"].items():
        dice, paired = row["dice"], row["paired_dice"]
        options = "".join(f" --set {option}" for option in row["options"])
        command = "-" if row["method"] is None else f"`--method {row['method']}{options}`"
        difference = (
            "-"
            if paired is None
            else f"{paired['difference']:+.3f} ({paired['low']:+.3f} to {paired['high']:+.3f})"
        )
        lines.append(
            f"| {name} | {command} | {row['bytes'] / 1e6:.1f} | {100 * row['share']:.0f} % | "
            f"{dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) | {difference} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(tyro.cli(Plan))
