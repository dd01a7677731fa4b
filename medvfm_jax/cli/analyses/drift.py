"""`medvfm analyze drift`: how many local steps sites can take."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import DriftConfig
from medvfm_jax.theory import DriftResult, analyze_drift


def run(config: DriftConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_drift(config, say)
    return found._asdict() | {"points": [point._asdict() for point in found.points]}, _text(found)


TOOL = Tool(DriftConfig, run)


def _text(found: DriftResult) -> str:
    rows = [
        (
            str(point.steps),
            f"{100 * point.predicted:.2f} %",
            *(
                ("", "", "", "")
                if point.measured is None
                else (
                    f"{100 * point.measured:.2f} %",
                    "" if point.angle is None else f"{point.angle:.3f}",
                    f"{point.loss:.5f}",
                    f"{point.loss_central:.5f}",
                )
            ),
        )
        for point in found.points
    ]
    columns = ("local steps", "predicted drift", "measured", "cosine", "loss, averaged", "loss, all data")
    most = "any number of" if found.most_steps >= 10**9 else f"{found.most_steps:,}"
    far = [
        p for p in found.points if p.measured is not None and abs(p.measured - p.predicted) > p.predicted / 2
    ]
    far = [p for p in far if p.steps > 1]
    warning = (
        f"\nwarning: at {far[0].steps} local steps the real drift is {100 * far[0].measured:.2f} %, far from what was "
        "predicted: at this rate higher derivatives count, and the number of steps above does not hold"
        if far
        else ""
    )
    return (
        console.table(columns, rows)
        + f"\n{len(found.sites)} sites of {found.data}, {sum(found.images)} images, {found.trained:,} numbers, rate "
        f"{found.rate:.3g}, loss {found.loss:.5f} at the start; predicted in {found.seconds:.0f} s, steps in "
        f"{found.seconds_simulated:.0f} s\n{most} local steps stay within {100 * found.tolerance:g} % of the step"
        + warning
    )
