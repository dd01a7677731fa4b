"""`medvfm analyze scaling`: what more labelled patients would bring."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import ScalingConfig
from medvfm_jax.theory import ScalingResult, analyze_scaling


def run(config: ScalingConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_scaling(config, say)
    law = found.law._asdict() | {
        name: getattr(found.law, name).tolist() for name in ("amplitudes", "exponents")
    }
    return found._asdict() | {"law": law, "points": [point._asdict() for point in found.points]}, _text(found)


TOOL = Tool(ScalingConfig, run)


def _text(found: ScalingResult) -> str:
    rows = [
        (
            str(point.shots),
            "none" if point.measured is None else f"{point.measured:.4f}",
            f"{point.predicted:.4f}" + _span((point.low, point.high)),
            "fitted" if point.fitted else "predicted",
        )
        for point in found.points
    ]
    law = found.law
    return (
        console.table(("patients", "measured Dice", "of the law", ""), rows)
        + f"\n1 - Dice of {found.label} = {law.floor:.4f} + {law.amplitudes[0]:.4f} * patients ** "
        f"-{law.exponents[0]:.3f}; {_uncertainty(found)}"
    )


def _uncertainty(found: ScalingResult) -> str:
    if found.exponent is None or found.floor is None:
        return "one seed gives no interval"
    return f"exponent{_span(found.exponent)}, floor{_span(found.floor)}: 95 % of resamples of {found.seeds} seeds"


def _span(ends: tuple[float | None, float | None]) -> str:
    low, high = ends
    return "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
