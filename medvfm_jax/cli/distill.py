"""`medvfm distill`: teach a student on a folder of images."""

import sys
from dataclasses import fields

from medvfm_jax.cli import console
from medvfm_jax.cli.options.distill import DistillArgs
from medvfm_jax.distill import distill
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.distill import DistillConfig


def run(args: DistillArgs) -> int:
    """Train; prints what trains, the progress, and where things are."""
    config = DistillConfig(**{field.name: getattr(args, field.name) for field in fields(DistillConfig)})
    with ProgressDisplay(sys.stderr if console.json_mode() else sys.stdout, "distill") as display:
        result = distill(config, display)
    console.result(result._asdict(), f"next: medvfm evaluate --run {result.folder}")
    return 0
