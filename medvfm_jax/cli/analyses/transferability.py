"""`medvfm analyze transferability`: encoders ranked by how well classes follow from their features."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import TransferabilityConfig
from medvfm_jax.theory import TransferabilityResult, analyze_transferability

_COLUMNS = {
    "logme": "LogME",
    "h_score": "H-score",
    "h_score_shrunk": "shrunk",
    "n_leep": "N-LEEP",
    "probe": "probe",
    "neighbour": "1-NN",
}


def run(config: TransferabilityConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_transferability(config, say)
    models = [
        model._asdict() | {name: getattr(model, name)._asdict() for name in _COLUMNS}
        for model in found.models
    ]
    return found._asdict() | {"models": models}, _text(found)


TOOL = Tool(TransferabilityConfig, run)


def _text(found: TransferabilityResult) -> str:
    columns = ["model", "features", *(word for name in _COLUMNS.values() for word in (name, "+-")), "s"]
    after = columns.index("H-score") + 2
    columns.insert(after, "chance")
    rows = []
    for model in found.models:
        said = [getattr(model, name) for name in _COLUMNS]
        numbers = [word for one in said for word in (f"{one.value:.3f}", f"{one.error:.3f}")]
        row = [model.model, model.features, *numbers, f"{sum(model.seconds):.0f}"]
        row.insert(after, f"{model.by_chance:.3f}")
        rows.append(row)
    points = ", ".join(f"{count} {name}" for name, count in found.points.items())
    return (
        console.table(columns, rows)
        + f"\n{sum(found.points.values())} points ({points}) of {found.images} pictures of {found.data}, the same for "
        "all models; chance: H-score of as many features of which nothing follows; +-: standard error over patients; "
        "probe and 1-NN: share of right answers on held-out patients"
    )
