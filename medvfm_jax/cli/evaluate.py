"""`medvfm evaluate`: scores of a run, or of a model as it is, with patient-level intervals."""

import sys
from dataclasses import dataclass, fields

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.federated.evaluate_sites import evaluate
from medvfm_jax.train.config import EvaluateConfig
from medvfm_jax.train.score_table import show


@dataclass(frozen=True)
class EvaluateArgs(EvaluateConfig):
    """Score a run, or a model as it is, on labelled images: whole cases, on their own grid.

    Example: medvfm evaluate --run runs/a

    Example: medvfm evaluate --model lite-medsam --data data/dsb2018 --out zero_shot.json

    Every score comes with its metric profile, n, a 95 % interval (over patients) and the number of
    empty masks. Scores of a run go into its directory, for medvfm report. In a federated run whose
    sites keep a part of the model, each case is scored with the model of its site, and the scores say so.
    """


def run(args: EvaluateArgs) -> int:
    """Score, print the table, write scores.json."""
    config = EvaluateConfig(**{field.name: getattr(args, field.name) for field in fields(EvaluateConfig)})
    scores = evaluate(config, Console(file=sys.stderr, highlight=False))
    if not console.json_mode():
        show(scores, Console(highlight=False))
    following = f"; next: medvfm report {config.run}" if config.run is not None and config.out is None else ""
    console.result(scores, f"scores: {scores['file']}{following}")
    return 0
