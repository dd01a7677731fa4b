"""Scores as a table for a terminal: mean, interval, n, empty masks."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from medvfm_jax.metrics.bootstrap import methods_in_words
from medvfm_jax.printable import counted
from medvfm_jax.settings.runtime import described

_DISTANCES = ("hd", "hd95", "assd")


def show(scores: Mapping[str, Any], console: Console) -> None:
    """Print what `evaluate` returned."""
    prompt = "no prompt" if scores["prompt"] == "none" else f"{scores['prompt']} prompts from the reference"
    flips = ", averaged over flips" if scores["flips"] else ""
    runtime = f", {words}" if (words := described(scores.get("runtime"))) else ""
    profile = f"{scores['metric_profile']} profile"
    table = Table(
        title=f"{scores['model']}, {prompt}{flips}{runtime}, {scores['split']} split, {profile}",
        caption=_caption(scores),
        caption_justify="left",
        title_justify="left",
    )
    table.add_column("metric")
    table.add_column("label")
    for name in ("mean", "95 % interval", "median", "n"):
        table.add_column(name, justify="right")
    for row in scores["summary"]:
        table.add_row(
            row["metric"], row["label"], number(row["mean"], row["metric"]), interval(row),
            number(row["median"], row["metric"]), str(row["n"]),
        )  # fmt: skip
    console.print(table)


def number(value: float | None, metric: str) -> str:
    """A score with as many digits as it deserves."""
    if value is None:
        return "-"
    return f"{value:.2f}" if metric in _DISTANCES else f"{value:.4f}"


def interval(row: Mapping[str, Any]) -> str:
    """Bounds of the interval, or "-" without one."""
    if row["low"] is None:
        return "-"
    return f"{number(row['low'], row['metric'])} to {number(row['high'], row['metric'])}"


def _caption(scores: Mapping[str, Any]) -> str:
    empty = scores["empty"]
    text = (
        f"n = {counted(scores['n_patients'], 'patient')}, {counted(scores['n_cases'], 'case')}; interval: "
        f"{methods_in_words(scores['summary'])}; "
        f"empty: {empty['reference']} reference, {empty['prediction']} prediction, {empty['both']} both"
    )
    skipped = len(scores.get("skipped", ()))
    return text + (f"; {skipped} unreadable cases skipped" if skipped else "")
