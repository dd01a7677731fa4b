"""`medvfm analyze kernel`: how fast adapters can learn, by their tangent kernels."""

from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import KernelConfig
from medvfm_jax.theory import KernelResult, analyze_kernel


def run(config: KernelConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_kernel(config, say)
    adapters = [
        one._asdict() | one.summary._asdict() | {"eigenvalues": one.summary.eigenvalues.tolist()}
        for one in found.adapters
    ]
    for one in adapters:
        del one["summary"]
    return found._asdict() | {"adapters": adapters}, _text(found)


TOOL = Tool(KernelConfig, run)


def _text(found: KernelResult) -> str:
    first = found.adapters[0].summary
    columns = ("adapter", "trained", "slope", "slope / 1000", "alignment", "dimension", "largest", "trace")
    columns += tuple(f"left after {time:g}" for time in first.times)
    columns += ("loss", *(f"loss after {time:g}" for time in first.times))
    rows = [
        (
            one.adapter,
            f"{one.trained:,}",
            f"{one.summary.slope:.3g}",
            f"{1000 * one.summary.slope / one.trained:.3g}",
            f"{one.summary.alignment:.2f}",
            f"{one.summary.dimension:.1f}",
            f"{one.summary.eigenvalues[0]:.3g}",
            f"{one.summary.trace:.3g}",
            *(f"{100 * left:.0f} %" for left in one.summary.left),
            *(f"{loss:.3f}" for loss in one.summary.losses),
        )
        for one in found.adapters
    ]
    seconds = sum(one.seconds for one in found.adapters)
    return (
        console.table(columns, rows)
        + f"\n{first.outputs} logits of {found.images} images of {found.data}, {seconds:.0f} s; slope: decrease of "
        "their mean logistic loss per unit of learning rate by the first step; left: of the squared residual, after so "
        "many steps of the rate 1 / largest"
    )
