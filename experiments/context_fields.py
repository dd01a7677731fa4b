"""Does the receptive field that a context block adds say whom it helps: LiteMedSAM on nuclei, by size of the nuclei.

python -m experiments.context_fields --data DATA/dsb2018 --runs runs/context_blocks

Before training, each block is switched on at its random first values (its gate set to 1) and the effective receptive
field of the encoder with it is measured; theory would expect that a block that widens it helps most, and most where
nuclei are large.  The measured side are the runs of `experiments.context_blocks`: the paired gain in Dice over LoRA
alone, over all test pictures and as rank correlation over pictures with the median diameter of a picture's nuclei.
The field of each trained run is measured as well: it says whether training kept what the block offers.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from experiments.context_blocks import ALONE, ROWS
from medvfm_jax import compilation_cache, cpu
from medvfm_jax.adapters.context import GATE, context
from medvfm_jax.adapters.context_blocks import BLOCKS
from medvfm_jax.adapters.model import adapt_model
from medvfm_jax.data import Dataset, open_dataset, read_case
from medvfm_jax.few_shot.dense_features import load_encoder
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings.analyze import ReceptiveFieldConfig
from medvfm_jax.systems.places import LEVELS
from medvfm_jax.theory import Extent, rank_agreement, receptive_field
from medvfm_jax.theory.runs.pictures import open_encoder, open_sample
from medvfm_jax.train.dense_encoder import DenseEncoder

RESULTS = Path(__file__).parent / "results" / "context_fields.json"
MODEL = "lite-medsam"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the comparison."""

    data: str
    """Folder dsb2018."""
    runs: Path = Path("runs/context_blocks")
    """Where `experiments.context_blocks` wrote its rows; blocks without a finished row are named and left out."""
    width: int = 64
    """Inner channels of every block, those of the rows."""
    cases: int = 4
    """Training pictures whose derivatives are taken."""
    probes: int = 2
    """Vector-Jacobian products of each picture."""
    seed: int = 0
    """Of the blocks' first values and of the random signs."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Measure the fields and compare; writes the comparison as JSON.

    Raises:
        MedvfmError: data, weights or runs that cannot be read.
    """
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    finished = {name: row for name, row in ROWS.items() if (plan.runs / row / run_directory.SCORES).exists()}
    missing = [row for row in ROWS.values() if row not in finished.values()]
    if missing:
        console.print(
            f"left out, without scores in {plan.runs}: {', '.join(missing)}", markup=False, soft_wrap=True
        )
    settings = ReceptiveFieldConfig(data=plan.data, models=(MODEL,), cases=plan.cases, seed=plan.seed)
    sample = open_sample(settings, lambda text: console.print(text, markup=False))

    def field_of(what: str, encoder: DenseEncoder) -> tuple[Extent, Extent]:
        console.print(f"field of {what}", markup=False)
        return receptive_field(encoder, sample.pictures, probes=plan.probes, seed=plan.seed)

    encoder = open_encoder(MODEL, False)
    scores = {row: dice_by_case(plan.runs / row) for row in (ALONE, *finished.values())}
    table = table_of(
        alone=(field_of(MODEL, encoder), field_of(ALONE, open_encoder(str(plan.runs / ALONE), False))),
        fields={
            name: (
                field_of(f"{name} at its first values", switched_on(name, plan)),
                field_of(row, open_encoder(str(plan.runs / row), False)),
            )
            for name, row in finished.items()
        },
        gains={
            name: {case: dice - scores[ALONE][case] for case, dice in scores[row].items()}
            for name, row in finished.items()
        },
        diameters=diameters(open_dataset(plan.data), sorted(scores[ALONE]), encoder.spec.input_size),
    )
    facts = {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("data", "runs")},
        "data": sample.dataset.name,
        "left_out": missing,
        "versions": versions(),
        "device": device(),
    }
    run_directory.write_json(results, facts | table)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return facts | table


def switched_on(name: str, plan: Plan) -> DenseEncoder:
    """LiteMedSAM's encoder with a block whose output is added at its random first values."""
    model, params, _ = load_encoder(MODEL)
    entry = BLOCKS[name]
    block = context(
        lambda: entry.make(width=plan.width, zero_init=False),
        "image_encoder",
        levels=LEVELS if entry.pyramid else None,
    )
    adapted = adapt_model(block, model)
    delta = adapted.init(jax.random.key(plan.seed), params)
    delta = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.ones_like(x) if path[-1].key == GATE else x, delta
    )
    return DenseEncoder(model._replace(encode=lambda p, image: adapted.encode(p, delta, image)), params)


def dice_by_case(folder: Path) -> dict[str, float]:
    """Dice of each test case of a row; rows of objects have none."""
    rows = run_directory.read_json(folder / run_directory.SCORES)["cases"]
    return {row["case"]: row["dice"] for row in rows if "dice" in row}


def diameters(dataset: Dataset, cases: Sequence[str], side: int) -> dict[str, float]:
    """Median diameter of a picture's objects, of circles of equal area, in pixels of an input of ``side`` pixels."""
    found = {}
    for case in cases:
        objects = read_case(dataset, case).instances
        found[case] = side / max(objects.shape) * median_diameter(objects)
    return found


def median_diameter(objects: NDArray[np.int32]) -> float:
    """Of the circles with the areas of the objects of a map of numbers, in pixels."""
    areas = np.bincount(objects.ravel())[1:]
    return float(np.median(2 * np.sqrt(areas[areas > 0] / np.pi)))


def table_of(
    alone: tuple[tuple[Extent, Extent], tuple[Extent, Extent]],
    fields: Mapping[str, tuple[tuple[Extent, Extent], tuple[Extent, Extent]]],
    gains: Mapping[str, Mapping[str, float]],
    diameters: Mapping[str, float],
) -> dict[str, Any]:
    """Predicted and trained field of each block beside its gain, and whether they go together.

    Args:
        alone: field and its standard errors, of the published encoder and of LoRA alone after training.
        fields: the same of the encoder with each block, before and after training.
        gains: Dice of each case minus that of LoRA alone, for each block.
        diameters: of each case.
    """
    rows = {}
    for name, (before, after) in fields.items():
        cases = sorted(gains[name])
        sizes, gain = [diameters[c] for c in cases], [gains[name][c] for c in cases]
        rows[name] = {
            "before": _extent(before),
            "after": _extent(after),
            "gain": statistics.fmean(gain),
            "n": len(cases),
            "with_size": rank_agreement(sizes, gain)._asdict(),
        }
    predicted = [rows[name]["before"]["square"] for name in rows]
    trained = [rows[name]["after"]["square"] for name in rows]
    gain = [rows[name]["gain"] for name in rows]
    slope = [rows[name]["with_size"]["rho"] for name in rows]
    pairs = {
        "field before training and gain": (predicted, gain),
        "field after training and gain": (trained, gain),
        "field before training and gain's correlation with size": (predicted, slope),
        "field before and after training": (predicted, trained),
    }
    return {
        "alone": {"before": _extent(alone[0]), "after": _extent(alone[1])},
        "diameter": dict(
            zip(("low", "median", "high"), np.quantile(list(diameters.values()), (0, 0.5, 1)).tolist())
        ),
        "blocks": rows,
        "agreement": {name: rank_agreement(*sides)._asdict() for name, sides in pairs.items()},
    }


def _extent(found: tuple[Extent, Extent]) -> dict[str, float]:
    """Mean deviation of both axes, and the square that holds 95 %, with its standard error."""
    value, error = found
    return {
        "deviation": (value.height + value.width) / 2,
        "square": value.square,
        "square_error": error.square,
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison as text: blocks by the field that they have before training."""
    lines = [
        "| block | 95 % square before | after training | Dice minus LoRA alone | rank correlation of gain with size |",
        "|---|---|---|---|---|",
        f"| none | {_square(table['alone']['before'])} | {_square(table['alone']['after'])} | | |",
    ]
    for name, row in sorted(table["blocks"].items(), key=lambda item: -item[1]["before"]["square"]):
        lines.append(
            f"| {name} | {_square(row['before'])} | {_square(row['after'])} | {row['gain']:+.4f} | "
            f"{_rho(row['with_size'])} |"
        )
    lines.append("")
    lines += [f"* {name}: {_rho(found)}" for name, found in table["agreement"].items()]
    return "\n".join(lines)


def _square(extent: Mapping[str, float]) -> str:
    return f"{extent['square']:.0f} ± {extent['square_error']:.0f}"


def _rho(found: Mapping[str, float]) -> str:
    return f"{found['rho']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f}), p = {found['p']:.2f}, n = {found['n']}"


if __name__ == "__main__":
    run(tyro.cli(Plan))
