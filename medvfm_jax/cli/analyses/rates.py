"""`medvfm analyze rates`: what a federated run sends, and what its codec and its noise take from a round."""

import math
from collections.abc import Callable
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.cli.analyses import Tool
from medvfm_jax.settings.analyze import RatesConfig
from medvfm_jax.theory import RatesResult, analyze_rates


def run(config: RatesConfig, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """The record, and the tables."""
    found = analyze_rates(config, say)
    codecs = [row._asdict() | {"loss": row.loss if math.isfinite(row.loss) else None} for row in found.codecs]
    privacy = [row._asdict() | {"noise": row.noise.record()} for row in found.privacy]
    return found._asdict() | {"codecs": codecs, "privacy": privacy}, _text(config, found)


TOOL = Tool(RatesConfig, run)


def _text(config: RatesConfig, found: RatesResult) -> str:
    sent = [
        (
            row.preset, row.codec, f"{row.numbers:,}", f"{row.upload / 1e3:,.1f}", f"{row.total / 1e6:,.1f}",
            f"{row.loss:.2g}" if math.isfinite(row.loss) else "unknown",
            "-" if row.normal is None else f"{row.normal:.2g}", "no" if row.unbiased else "yes",
        )
        for row in found.codecs
    ]  # fmt: skip
    noise = [
        (
            row.preset, f"{row.epsilon:g}", f"{row.multiplier:.2f}", f"{row.noise.ratio:.2g}", f"{row.overall:.2g}",
            f"{row.noise.parameters_that_fit:,}",
            f"{row.noise.clients_that_suffice:,}" if row.noise.unit == "client" else "-",
        )
        for row in found.privacy
    ]  # fmt: skip
    sums = config.rounds * (1 if config.dp_unit == "client" else config.local_steps)
    columns = ("preset", "codec", "numbers", "kB up", "MB, all", "error", "of normal", "memory")
    of_noise = ("preset", "epsilon", "noise", "ratio", "of all", "numbers that fit", "clients that suffice")
    return (
        console.table(columns, sent)
        + f"\nkB up: of one client's update; MB: {config.rounds} rounds of {found.chosen} clients, float32 on the way "
        "to them; error: squared, of the mean of a round, at most, of the mean squared norm of its updates; of normal: "
        "that error where they are independent normal numbers (not tried of more than 262,144); memory: whether it is "
        "a bias, which --memory error_feedback makes up for\n\n"
        + console.table(of_noise, noise)
        + f"\nunit {config.dp_unit}, delta {config.dp_delta:g}, {sums} noisy sums; noise: its multiplier; ratio: norm "
        "of the noise in the mean of a round, of the largest signal (the clipping bound): above 1 a round shows its "
        "noise alone; of all: over the root of the rounds, if all have the same signal; numbers that fit, clients that "
        "suffice: for a ratio of 1"
    )
