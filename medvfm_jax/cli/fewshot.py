"""`medvfm fewshot`: masks and scores of a frozen model that was shown a few labelled cases."""

import sys
from dataclasses import fields

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.fewshot import FewshotArgs
from medvfm_jax.few_shot.scoring import few_shot
from medvfm_jax.predict.score_table import show
from medvfm_jax.settings.few_shot import FewShotConfig


def run(args: FewshotArgs) -> int:
    """Learn from the support, score, print the table, write scores.json."""
    config = FewShotConfig(**{field.name: getattr(args, field.name) for field in fields(FewShotConfig)})
    scores = few_shot(config, Console(file=sys.stderr, highlight=False))
    if not console.json_mode():
        show(scores, Console(highlight=False))
    console.result(scores, f"scores: {scores['file']}")
    return 0
