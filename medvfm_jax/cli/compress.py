"""`medvfm compress`: a trained model made smaller, in a run directory."""

import sys
from dataclasses import fields

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.compress import CompressArgs
from medvfm_jax.compress import compress
from medvfm_jax.settings.compress import CompressConfig


def run(args: CompressArgs) -> int:
    """Compress; prints what was chosen, both sizes and how far the outputs moved."""
    config = CompressConfig(**{field.name: getattr(args, field.name) for field in fields(CompressConfig)})
    out = Console(file=sys.stderr if console.json_mode() else sys.stdout, highlight=False)
    result = compress(config, lambda text: out.print(text, markup=False, soft_wrap=True))
    console.result(result._asdict(), f"next: medvfm evaluate --run {result.folder}")
    return 0
