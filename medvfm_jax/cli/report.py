"""`medvfm report`: one HTML page about one run, or several side by side."""

from medvfm_jax import report
from medvfm_jax.cli import console
from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.options.report import ReportArgs


def run(args: ReportArgs) -> int:
    """Write the page and say where it is."""
    if not args.runs:
        raise BadUsage("there is no run to report on; give one or more run directories")
    path = report.write(args.runs, args.out)
    console.result({"report": path, "runs": args.runs}, f"report: {path}")
    return 0
