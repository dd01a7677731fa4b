"""`medvfm report`: one HTML page about one run, or several side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from medvfm_jax import report
from medvfm_jax.cli import console
from medvfm_jax.cli.errors import BadUsage


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


def run(args: ReportArgs) -> int:
    """Write the page and say where it is."""
    if not args.runs:
        raise BadUsage("there is no run to report on; give one or more run directories")
    path = report.write(args.runs, args.out)
    console.result({"report": path, "runs": args.runs}, f"report: {path}")
    return 0
