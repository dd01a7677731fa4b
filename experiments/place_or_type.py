r"""Does where an adapter sits matter more than which it is, and what predicts the order: LiteMedSAM on nuclei.

python -m experiments.place_or_type --data DATA/dsb2018

The measured side are nine rows of the catalogue (results/catalogue.json): LoRA, SSF and a bottleneck, each in the
encoder's attention, its MLP and the decoder, trained for 40 steps beside the same head.  Their variance is divided into
place, type and what is left.  The predictions look at a few training images before any training, and at the adapter's
own numbers without the head's: how many they are, what the first step gains by plain gradient descent and by steps of
one size (as Adam's first), Fisher information, and the slope of the tangent kernel.  Correlations are over nine cells
in three places, so that they are three steps more than nine points.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from experiments.catalogue import METHODS
from medvfm_jax import compilation_cache, cpu
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import AdaptConfig
from medvfm_jax.theory import PREDICTORS, rank_agreement
from medvfm_jax.theory.runs.trained_numbers import TrainedNumbers, open_start, restricted

CATALOGUE = Path(__file__).parent / "results" / "catalogue.json"
RESULTS = Path(__file__).parent / "results" / "place_or_type.json"
TYPES, PLACES = ("lora", "ssf", "bottleneck"), ("attention", "mlp", "decoder")
CELLS = tuple(f"{kind} @ {place}" for place in PLACES for kind in TYPES)
HEAD = "decoder"  # the part of each adapter that all rows share


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the comparison."""

    data: str
    """Folder dsb2018."""
    cases: int = 4
    """Training images that the predictions look at."""
    tools: tuple[str, ...] = ("size", "gradient", "kernel")
    """Names of predictors."""
    seed: int = 0
    """Of the split, the prompts and the order of images."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Predict every cell, then write the comparison as JSON."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    predicted, seconds = {}, dict.fromkeys(plan.tools, 0.0)
    for cell in CELLS:
        opened = _opened(plan, cell)
        predicted[cell] = {}
        for tool in plan.tools:
            start = time.process_time()
            scores = PREDICTORS[tool].scores(opened)
            seconds[tool] += time.process_time() - start
            predicted[cell] |= {name: value for name, (value, _) in scores.items()}
        console.print(cell, predicted[cell], markup=False)
    table = table_of(plan, predicted, seconds, json.loads(CATALOGUE.read_text(encoding="utf-8")))
    run_directory.write_json(results, table)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def _opened(plan: Plan, cell: str) -> TrainedNumbers:
    method = METHODS[cell]
    config = AdaptConfig(
        data=plan.data, model=method.model, adapter=method.adapter, set=method.set, prompt=method.prompt,
        batch_size=1, augment="none", embeddings="off", seed=plan.seed,
    )  # fmt: skip
    return restricted(
        open_start(config, plan.cases, lambda text: None), lambda path: not path.startswith(f"{HEAD}/")
    )


def table_of(
    plan: Plan,
    predicted: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    catalogue: Mapping[str, Any],
) -> dict[str, Any]:
    """Measured Dice of the nine cells, its division, and how each number agrees with it."""
    measured = {}
    for cell in CELLS:
        summary = catalogue["rows"][f"nuclei: {cell}"]["summary"]
        measured[cell] = next(row["mean"] for row in summary if row["metric"] == "dice")
    grid = np.array([[measured[f"{kind} @ {place}"] for kind in TYPES] for place in PLACES])
    names = list(predicted[CELLS[0]])
    dice = [measured[cell] for cell in CELLS]
    return {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k != "data"},
        "measured": measured,
        "variance": divided(grid),
        "predicted": {cell: dict(predicted[cell]) for cell in CELLS},
        "agreement": {
            name: rank_agreement([predicted[cell][name] for cell in CELLS], dice, seed=plan.seed)._asdict()
            for name in names
        },
        "processor_seconds": dict(seconds),
        "versions": versions(),
        "device": device(),
    }


def divided(grid: np.ndarray) -> dict[str, float]:
    """Shares of the sum of squares of a table (places, types) without repetitions: of rows, of columns, the rest.

    >>> shares = divided(np.array([[0.0, 1.0], [2.0, 3.0]]))
    >>> [round(shares[name], 3) for name in ("place", "type", "rest")]
    [0.8, 0.2, 0.0]
    """
    mean = grid.mean()
    rows, columns = grid.mean(1) - mean, grid.mean(0) - mean
    whole = ((grid - mean) ** 2).sum()
    place, kind = grid.shape[1] * (rows**2).sum() / whole, grid.shape[0] * (columns**2).sum() / whole
    return {"place": float(place), "type": float(kind), "rest": float(1 - place - kind)}


def markdown(table: Mapping[str, Any]) -> str:
    """The table as text."""
    names = list(table["agreement"])
    lines = [f"| cell | {' | '.join(names)} | measured Dice |", "|---" * (len(names) + 2) + "|"]
    for cell in sorted(table["measured"], key=lambda cell: -table["measured"][cell]):
        numbers = " | ".join(f"{table['predicted'][cell][name]:.3g}" for name in names)
        lines.append(f"| {cell} | {numbers} | {table['measured'][cell]:.4f} |")
    lines += ["", "| number | Spearman | 95 % interval | p |", "|---|---|---|---|"]
    for name, found in table["agreement"].items():
        lines.append(
            f"| {name} | {found['rho']:+.2f} | {found['low']:+.2f} to {found['high']:+.2f} | {found['p']:.3f} |"
        )
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in table["variance"].items())
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in table["processor_seconds"].items())
    return "\n".join(
        [*lines, "", f"Variance of the measured Dice: {shares}. Processor time of all nine: {seconds}."]
    )


if __name__ == "__main__":
    run(tyro.cli(Plan))
