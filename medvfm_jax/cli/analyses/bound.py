"""`medvfm analyze bound`: what the expected error of a run is at most."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import BoundConfig
from medvfm_jax.theory import BoundResult, analyze_bound


def run(config: BoundConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_bound(config, say)
    bounds = {name: [bound._asdict() for bound in getattr(found, name)] for name in ("noisy", "rounded")}
    return found._asdict() | bounds, _text(found)


TOOL = Tool(BoundConfig, run)


def _text(found: BoundResult) -> str:
    rows = [
        (each.how, f"{each.error:.3f}", f"{each.information:,.0f}", f"{each.bound:.3f}")
        for each in (*found.noisy, *found.rounded)
    ]
    least = min(each.bound for each in (*found.noisy, *found.rounded))
    verdict = (
        "no bound says anything: there is too much learnt for so few patients; they can still rank adapters"
        if least > 0.999
        else f"with probability {1 - found.doubt:g} the expected 1 - Dice is at most {least:.3f} for that row's adapter"
    )
    return (
        console.table(("adapter with", "1 - Dice, training", "nats", "bound"), rows)
        + f"\n{verdict}\n1 - Dice of the run itself {found.error:.3f}; {found.trained:,} numbers moved by "
        f"{found.distance:.3g}; {found.patients} patients of {found.data}, {found.seconds:.0f} s"
    )
