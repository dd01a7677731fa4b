"""Options of `medvfm report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ReportArgs:
    """Write one HTML page about a run, or about several side by side with paired differences.

    The page works offline: everything is inside the one file. Run `medvfm evaluate` first.

    Example: medvfm report runs/samed

    Example: medvfm report runs/unet runs/samed --out comparison.html
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Run directories, or files with scores written by evaluate."""
    out: Path | None = None
    """File to write; by default report.html in the run, or comparison.html beside the first of several."""
