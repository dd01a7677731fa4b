r"""Where theory says an adapter should be, beside where it was measured to be best: LiteMedSAM on nuclei.

python -m experiments.placement --data DATA/dsb2018

Gradients of a few training images at the start (`medvfm analyze placement`) give each of the catalogue's three places,
the encoder's attention, its MLP and the decoder's attention, what a first step gains, the empirical Fisher information
and the estimate of the squared expected gradient.  The measured side are the catalogue's rows ``lora @ PLACE``,
trained for 40 steps (results/catalogue.json).  Three places can be ordered in six ways, so an order that agrees is
weak evidence: one of six would by chance.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments.catalogue import METHODS
from medvfm_jax import compilation_cache, cpu
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings.analyze import PlacementConfig
from medvfm_jax.theory import Place, PlacementResult, analyze_placement

CATALOGUE = Path(__file__).parent / "results" / "catalogue.json"
RESULTS = Path(__file__).parent / "results" / "placement.json"
PLACES = ("attention", "mlp", "decoder")
TOOLS = ("gain", "gain per number", "fisher", "signal")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the comparison."""

    data: str
    """Folder dsb2018."""
    cases: int = 8
    """Training images whose gradients are taken."""
    rank: int = 4
    """Rank of the update, that of the catalogue's rows."""
    seed: int = 0
    """Of the split, the prompts and the order of images."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Take the gradients, then write the comparison as JSON."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    config = PlacementConfig(
        data=plan.data, model="lite-medsam", rank=plan.rank, cases=plan.cases, seed=plan.seed
    )
    found = analyze_placement(config, lambda text: console.print(text, markup=False))
    table = table_of(plan, found, json.loads(CATALOGUE.read_text(encoding="utf-8")))
    run_directory.write_json(results, table)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def table_of(plan: Plan, found: PlacementResult, catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """Each place's predictions and measured Dice, and whether each tool has the measured order."""
    rows = {}
    for name in PLACES:
        pattern = next(
            o.removeprefix("lora.at=") for o in METHODS[f"lora @ {name}"].set if o.startswith("lora.at=")
        )
        inside = [p for p in found.places if re.fullmatch(pattern, p.path.removesuffix("/kernel"))]
        summary = catalogue["rows"][f"nuclei: lora @ {name}"]["summary"]
        dice = next(row for row in summary if row["metric"] == "dice")
        rows[name] = predicted(inside) | {"dice": {key: dice[key] for key in ("mean", "low", "high")}}
    order = sorted(PLACES, key=lambda name: -rows[name]["dice"]["mean"])
    return {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k != "data"},
        "data": found.data,
        "images": found.images,
        "seconds": found.seconds,
        "versions": versions(),
        "device": device(),
        "places": rows,
        "order": order,
        "agrees": {tool: sorted(PLACES, key=lambda name: -rows[name][tool]) == order for tool in TOOLS},
    }


def predicted(places: list[Place]) -> dict[str, Any]:
    """What each tool says of several kernels together."""
    gain, trained = sum(p.gain for p in places), sum(p.trained for p in places)
    return {
        "kernels": len(places),
        "trained": trained,
        "gain": gain,
        "gain per number": gain / trained,
        "fisher": sum(p.fisher for p in places),
        "fisher_error": sum(p.fisher_error**2 for p in places) ** 0.5,
        "signal": sum(p.signal for p in places),
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison as text."""
    lines = [
        "| place | kernels | trained | gain | gain / 1000 | Fisher | signal | measured Dice |",
        "|---" * 8 + "|",
    ]
    for name in table["order"]:
        row, dice = table["places"][name], table["places"][name]["dice"]
        lines.append(
            f"| {name} | {row['kernels']} | {row['trained']:,} | {row['gain']:.3g} | "
            f"{1000 * row['gain per number']:.3g} | {row['fisher']:.3g} ± {row['fisher_error']:.2g} | "
            f"{row['signal']:.3g} | "
            f"{dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) |"
        )
    verdicts = [f"{tool}: {'yes' if agrees else 'no'}" for tool, agrees in table["agrees"].items()]
    return "\n".join([*lines, "", f"Has the measured order: {', '.join(verdicts)}."])


if __name__ == "__main__":
    run(tyro.cli(Plan))
