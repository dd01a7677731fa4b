"""`medvfm analyze barrier`: the loss along the line between two runs."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import BarrierConfig
from medvfm_jax.theory import Barrier, BarrierResult, analyze_barrier


def run(config: BarrierConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_barrier(config, say)
    barriers = {
        name: getattr(found, name)._asdict() | {"losses": getattr(found, name).losses.tolist()}
        for name in ("first", "second", "both")
    }
    return found._asdict() | barriers, _text(found)


TOOL = Tool(BarrierConfig, run)


def _text(found: BarrierResult) -> str:
    rows = [
        (f"{t:g}", *(f"{of.losses[i]:.4f}" for of in (found.first, found.second, found.both)))
        for i, t in enumerate(found.places)
    ]
    rows.append(("barrier", *(_height(of) for of in (found.first, found.second, found.both))))
    return (
        console.table(("place", "images of the first", "of the second", "of both"), rows)
        + f"\nbarrier: largest excess over the line between the ends, +- standard error over images\n"
        f"{sum(found.images)} images, runs {found.distance:.3g} apart, {found.seconds:.0f} s"
    )


def _height(of: Barrier) -> str:
    error = "" if of.error is None else f" +- {of.error:.2g}"
    return f"{of.height:.4f}{error} at {of.at:g}" if of.height > 0 else "none"
