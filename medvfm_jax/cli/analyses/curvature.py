"""`medvfm analyze curvature`: eigenvalues of the second derivatives, and the largest stable learning rate."""

import itertools
from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import CurvatureConfig
from medvfm_jax.theory import CurvatureResult, analyze_curvature


def run(config: CurvatureConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the table."""
    found = analyze_curvature(config, say)
    spectrum = found.spectrum._asdict() | {
        name: getattr(found.spectrum, name).tolist() for name in ("values", "weights")
    }
    return found._asdict() | {"spectrum": spectrum, "largest_rate": found.largest_rate}, _text(config, found)


TOOL = Tool(CurvatureConfig, run)


def _text(config: CurvatureConfig, found: CurvatureResult) -> str:
    of = found.spectrum
    error = "" if config.probes == 1 else f" +- {of.trace_error:.2g}"
    rows = [
        ("loss", f"{found.loss:.4f}"),
        ("largest eigenvalues", ", ".join(f"{value:.3g}" for value in of.largest)),
        ("smallest found", f"{of.smallest:.3g}"),
        ("trace", f"{of.trace:.3g}{error}"),
        ("share of negative ones", f"{100 * of.negative:.1f} %"),
        ("largest stable rate", f"{found.largest_rate:.3g} (plain gradient descent: 2 / the largest)"),
    ]
    kind = config.product.replace("_", "-")
    return (
        console.table(("", f"{kind} of {found.trained:,} numbers"), rows)
        + f"\nspectral density: {_density(found)}\n"
        f"{found.images} images of {found.data}, {of.products} products, {found.seconds:.0f} s"
    )


def _density(found: CurvatureResult) -> str:
    """Share of the eigenvalues by size, relative to the largest in magnitude."""
    of = found.spectrum
    relative = of.values / abs(of.values).max()
    bounds = (-1.0, -0.1, -1e-3, 1e-3, 0.1, 1.0)
    parts = []
    for low, high in itertools.pairwise(bounds):
        inside = (relative >= low) & ((relative < high) | (high == 1.0))
        if share := float(of.weights[inside].sum()):
            parts.append(f"{100 * share:.3g} % in {low:g} to {high:g}")
    return ", ".join(parts) + " of the largest"
