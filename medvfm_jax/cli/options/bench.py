"""Options of `medvfm bench`."""

from dataclasses import dataclass
from pathlib import Path

from medvfm_jax.settings.bench import BenchConfig


@dataclass(frozen=True)
class BenchArgs(BenchConfig):
    """Time encoding, segmenting, training and loading on this machine, beside its own matrix product.

    Example: medvfm bench --out bench.json

    Example: medvfm bench --models lite-medsam sam-b --rounds 5

    Example: medvfm bench --quick --rows encode loader

    Everything runs once per round in rotating order, and medians are shown. In a clone with the [parity] extra PyTorch
    takes turns; the ratio is its time over ours, above 1 is faster than PyTorch. docs/performance.md says what
    each column means and what limits it. Minutes; close other programs.
    """

    out: Path | None = None
    """JSON file to write, with the seconds of every round."""
    overwrite: bool = False
    """Replace --out if it exists."""
