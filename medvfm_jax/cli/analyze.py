"""`medvfm analyze placement | similarity`: what theory says of a model and data before anything is trained."""

import sys
from collections.abc import Sequence
from dataclasses import fields

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.analyze import Placement, Similarity
from medvfm_jax.settings.analyze import PlacementConfig, SimilarityConfig
from medvfm_jax.theory import Place, PlacementResult, SimilarityResult, analyze_placement, analyze_similarity


def run(args: Placement | Similarity) -> int:
    """Run one subcommand; prints its table."""
    out = Console(file=sys.stderr, highlight=False)

    def say(text: str) -> None:
        out.print(text, markup=False, soft_wrap=True)

    kind = PlacementConfig if isinstance(args, Placement) else SimilarityConfig
    config = kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
    if isinstance(config, PlacementConfig):
        found = analyze_placement(config, say)
        record = found._asdict() | {
            name: [place._asdict() | {"score": place.score} for place in getattr(found, name)]
            for name in ("places", "groups", "chosen")
        }
        console.result(record | {"pattern": found.pattern}, _placement(config, found))
    else:
        alike = analyze_similarity(config, say)
        console.result(alike._asdict(), _similarity(alike))
    return 0


def _placement(config: PlacementConfig, found: PlacementResult) -> str:
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


def _similarity(found: SimilarityResult) -> str:
    rows = [(a, *(f"{found.alignment[a][b]:.3f}" for b in found.models)) for a in found.models]
    return (
        console.table(("", *found.models), rows)
        + f"\ncentred kernel alignment without bias, mean features of {found.images} pictures of {found.data}"
    )
