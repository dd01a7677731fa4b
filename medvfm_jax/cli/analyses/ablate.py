"""`medvfm analyze ablate`: a grid of runs, and whether predictions have the measured order."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.report.ablation_page import write_ablation
from medvfm_jax.settings.analyze import AblateConfig
from medvfm_jax.theory import AblationResult, analyze_ablate
from medvfm_jax.theory.runs.ablate import failures


def run(config: AblateConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the tables."""
    found = analyze_ablate(config, say)
    record = found.record()
    page = write_ablation(config.out, record)
    return record | {"page": page}, f"{_text(found)}\npage: {page}"


TOOL = Tool(AblateConfig, run)


def _text(found: AblationResult) -> str:
    names = list(found.agreement)
    rows = []
    for cell in sorted(found.cells, key=lambda cell: -cell.mean if cell.dice else 1.0):
        error = f" +- {cell.error:.4f}" if len(cell.dice) > 1 else ""
        numbers = (
            f"{cell.predicted[name]['value']:.3g}" if name in cell.predicted else "none" for name in names
        )
        rows.append(
            (cell.name, *numbers, f"{cell.mean:.4f}{error}" if cell.dice else "none", str(len(cell.dice)))
        )
    cells = console.table(("cell", *names, "Dice", "seeds"), rows)
    agreement = [
        (name, f"{a.rho:+.2f}", f"{a.low:+.2f} to {a.high:+.2f}", f"{a.p:.3f}", str(a.n))
        if a.rho == a.rho
        else (name, "none", "needs three different cells", "", str(a.n))
        for name, a in found.agreement.items()
    ]
    cost = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.cost.items())
    lines = [cells, "", console.table(("number", "correlation", "95 % interval", "p", "cells"), agreement)]
    lines += [f"cost of training and scoring: {cost}"] if cost else []
    lines += [f"failed: {cell}, {what}: {why}" for cell, what, why in failures(found.failed)]
    return "\n".join(lines)
