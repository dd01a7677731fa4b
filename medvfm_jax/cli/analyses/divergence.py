"""`medvfm analyze divergence`: distances of domains, each beside what it is by chance."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import DivergenceConfig
from medvfm_jax.theory import DivergenceResult, analyze_divergence

_COLUMNS = {"mmd": "MMD^2", "a_distance": "A-distance", "frechet": "Frechet^2", "wasserstein": "sliced W^2"}


def run(config: DivergenceConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_divergence(config, say)
    pairs = [
        pair._asdict() | {name: getattr(pair, name)._asdict() for name in _COLUMNS} for pair in found.pairs
    ]
    bounds = [bound._asdict() | {"terms": bound.terms._asdict()} for bound in found.bounds]
    return found._asdict() | {"pairs": pairs, "bounds": bounds}, _text(found) + _bounds(found)


TOOL = Tool(DivergenceConfig, run)


def _text(found: DivergenceResult) -> str:
    columns = (
        "model",
        "between",
        "and",
        *(word for name in _COLUMNS.values() for word in (name, "chance", "p")),
    )
    rows = []
    for pair in found.pairs:
        tested = [getattr(pair, name) for name in _COLUMNS]
        numbers = [
            word for t in tested for word in (f"{t.value:.3f}", f"{t.by_chance:.3f}", f"{t.p_value:.3f}")
        ]
        rows.append((pair.model, pair.first, pair.second, *numbers))
    domains = ", ".join(f"{name} {count}" for name, count in found.domains.items())
    return (
        console.table(columns, rows)
        + f"\none picture of each patient: {domains}; chance: mean over {found.permutations} random divisions of the "
        "same patients, p: share that is at least as far apart, not corrected for the number of pairs; Frechet and W "
        "in units of the total variance"
    )


def _bounds(found: DivergenceResult) -> str:
    if not found.bounds:
        return ""
    columns = ("model", "head of", "on", "own error", "A-distance / 2", "joint error", "sum", "error", "+-")
    rows = [
        (one.model, one.source, one.target, *(f"{number:.3f}" for number in one.terms))
        for one in found.bounds
    ]
    return (
        "\n\n"
        + console.table(columns, rows)
        + "\nshare of labelled pixels that a linear head of one domain gets wrong on another (error +- over patients), "
        "beside the terms whose sum bounds it: its error at home, half the A-distance of the pixels' features, and the "
        "errors of one head for both, added; estimates, so that the sum may be passed"
    )
