"""`medvfm fewshot`: masks and scores of a frozen model that was shown a few labelled cases."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.fewshot import FewshotArgs
from medvfm_jax.few_shot.curve import learning_curve, plot_file
from medvfm_jax.few_shot.scoring import few_shot
from medvfm_jax.metrics.cases import INSTANCES
from medvfm_jax.predict.score_table import interval, number, show
from medvfm_jax.printable import counted
from medvfm_jax.report.charts import Series, curves, standalone
from medvfm_jax.settings.few_shot import FewShotConfig


def run(args: FewshotArgs) -> int:
    """Learn from the support, score, print the table, write scores.json; or a learning curve and its plot."""
    config = FewShotConfig(**{field.name: getattr(args, field.name) for field in fields(FewShotConfig)})
    progress = Console(file=sys.stderr, highlight=False)
    if config.shots:
        return _curve(learning_curve(config, progress))
    scores = few_shot(config, progress)
    if not console.json_mode():
        show(scores, Console(highlight=False))
    console.result(scores, f"scores: {scores['file']}")
    return 0


def _curve(record: dict[str, Any]) -> int:
    plot = plot_file(Path(record["file"]))
    plot.write_text(plot_of(record), "utf-8")
    if not console.json_mode():
        console.say(_table(record))
    words = f"learning curve: {record['file']}; {plot}"
    console.result(record | {"plot": str(plot)}, words)
    return 0


def plot_of(record: Mapping[str, Any]) -> str:
    """A learning curve as SVG: mean Dice of each label over the number of patients, intervals over test patients."""
    labels = dict.fromkeys(row["label"] for row in record["curve"] if row["label"] != INSTANCES)
    series = []
    for label in labels:
        rows = [row for row in record["curve"] if row["label"] == label]
        bars = [(row["shots"], row["low"], row["high"]) for row in rows if row["low"] is not None]
        series.append(Series(label, [(row["shots"], row["mean"]) for row in rows], dots=True, bars=bars))
    title = f"Dice, {record['model']}, {record['data']}"
    return standalone(curves(title, series, "labelled patients", doubling=True))


def _table(record: Mapping[str, Any]) -> str:
    title = (
        f"{record['model']}, Dice on the {record['split']} split of {record['data']}, "
        f"{counted(record['n_patients'], 'patient')}; means over {counted(record['seeds'], 'seed')}, 95 % intervals "
        "over patients"
    )
    rows = [
        (
            row["label"],
            row["shots"],
            number(row["mean"], "dice"),
            interval(row | {"metric": "dice"}),
            _span(row["seeds"]),
        )
        for row in record["curve"]
    ]
    columns = ("label", "patients", "mean", "95 % interval", "lowest and highest seed")
    return f"{title}\n{console.table(columns, rows)}"


def _span(seeds: list[float | None]) -> str:
    known = [mean for mean in seeds if mean is not None]
    return f"{number(min(known), 'dice')} to {number(max(known), 'dice')}" if known else "-"
