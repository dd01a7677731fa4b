"""`medvfm analyze placement`: gains of kernels, and the command that trains the chosen ones."""

from collections.abc import Callable, Sequence
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import PlacementConfig
from medvfm_jax.theory import Place, PlacementResult, analyze_placement


def run(config: PlacementConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_placement(config, say)
    record = found._asdict() | {
        name: [place._asdict() | {"score": place.score} for place in getattr(found, name)]
        for name in ("places", "groups", "chosen")
    }
    return record | {"pattern": found.pattern}, _text(config, found)


TOOL = Tool(PlacementConfig, run)


def _text(config: PlacementConfig, found: PlacementResult) -> str:
    lines = [
        _table(found.groups),
        f"{found.images} images of {found.data}, {found.seconds:.0f} s; gain: decrease of the loss per unit of "
        f"learning rate by the best first step of rank {config.rank}",
    ]
    if config.budget is not None and found.chosen:
        trained = sum(place.trained for place in found.chosen)
        lines.append(
            f"{trained:,} of {config.budget:,} numbers at: {', '.join(place.path for place in found.chosen)}\n"
            f"next: medvfm adapt --data {config.data} --model {config.model} --adapter lora "
            f"--set lora.rank={config.rank} --set lora.slices=none --set lora.layout=none "
            f"--set lora.head_dim=none --set 'lora.at={found.pattern}'"
        )
    elif config.budget is not None:
        lines.append(f"no group of weights fits into {config.budget:,} numbers; give a larger --budget")
    return "\n".join(lines)


def _table(groups: Sequence[Place]) -> str:
    columns = (
        "weights",
        "n",
        "trained",
        "gain",
        "gain / 1000",
        "Fisher",
        "+-",
        "signal",
        "rank 90 %",
        "stable",
    )
    rows = [
        (
            g.path.removesuffix("/kernel"),
            g.weights,
            f"{g.trained:,}",
            f"{g.gain:.3g}",
            f"{1000 * g.score:.3g}",
            f"{g.fisher:.3g}",
            f"{g.fisher_error:.2g}",
            f"{g.signal:.3g}",
            f"{g.energy_rank:g}",
            f"{g.stable_rank:.1f}",
        )
        for g in groups
    ]
    return console.table(columns, rows)
