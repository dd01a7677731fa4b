"""`medvfm generate`: a data folder made from a model alone."""

import sys
from dataclasses import fields

from medvfm_jax.cli import console
from medvfm_jax.cli.options.generate import GenerateArgs
from medvfm_jax.distill import generate
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.generate import GenerateConfig


def run(args: GenerateArgs) -> int:
    """Make the pictures; prints what they follow, the progress, and where they are."""
    config = GenerateConfig(**{field.name: getattr(args, field.name) for field in fields(GenerateConfig)})
    with ProgressDisplay(sys.stderr if console.json_mode() else sys.stdout, "generate") as display:
        result = generate(config, display)
    console.result(
        result._asdict(),
        f"next: medvfm distill --data {result.folder} --teacher {config.teacher} --test-fraction 0",
    )
    return 0
