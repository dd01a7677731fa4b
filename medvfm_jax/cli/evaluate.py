"""`medvfm evaluate`: scores of a run, or of a model as it is, with patient-level intervals."""

import sys
from dataclasses import fields

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.evaluate import EvaluateArgs
from medvfm_jax.federated.run.evaluate_sites import evaluate
from medvfm_jax.predict.score_table import show
from medvfm_jax.settings.evaluate import EvaluateConfig


def run(args: EvaluateArgs) -> int:
    """Score, print the table, write scores.json."""
    config = EvaluateConfig(**{field.name: getattr(args, field.name) for field in fields(EvaluateConfig)})
    scores = evaluate(config, Console(file=sys.stderr, highlight=False))
    if not console.json_mode():
        show(scores, Console(highlight=False))
    following = f"; next: medvfm report {config.run}" if config.run is not None and config.out is None else ""
    console.result(scores, f"scores: {scores['file']}{following}")
    return 0
