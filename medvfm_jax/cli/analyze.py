"""`medvfm analyze TOOL`: what theory says of a model and data before anything is trained."""

import sys
from dataclasses import fields
from typing import Any

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import (
    ablate,
    attention_distance,
    barrier,
    bound,
    conflict,
    curvature,
    divergence,
    drift,
    kernel,
    landscape,
    placement,
    rates,
    receptive_field,
    scaling,
    similarity,
    transferability,
)

TOOLS = (
    placement.TOOL,
    kernel.TOOL,
    curvature.TOOL,
    barrier.TOOL,
    landscape.TOOL,
    bound.TOOL,
    similarity.TOOL,
    transferability.TOOL,
    divergence.TOOL,
    receptive_field.TOOL,
    attention_distance.TOOL,
    conflict.TOOL,
    drift.TOOL,
    scaling.TOOL,
    rates.TOOL,
    ablate.TOOL,
)


def run(args: Any) -> int:
    """Run one tool; prints its table."""
    out = Console(file=sys.stderr, highlight=False)
    tool = next(tool for tool in TOOLS if isinstance(args, tool.config))
    config = tool.config(**{field.name: getattr(args, field.name) for field in fields(tool.config)})
    console.result(*tool.run(config, lambda text: out.print(text, markup=False, soft_wrap=True)))
    return 0
