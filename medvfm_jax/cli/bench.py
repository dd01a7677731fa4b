"""`medvfm bench`: how fast this machine is with these models, and what it could do at best."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from rich.console import Console

from medvfm_jax.bench.measure import BenchResult, RowResult, bench
from medvfm_jax.cli import console
from medvfm_jax.cli.options.bench import BenchArgs
from medvfm_jax.cli.targets import check_target
from medvfm_jax.images.writing import write_atomically
from medvfm_jax.runs.progress import tracked
from medvfm_jax.settings.bench import BenchConfig

_COLUMNS = (
    "row",
    "images",
    "median s",
    "images/s",
    "GFLOP",
    "of product",
    "first s",
    "peak MiB",
    "PyTorch s",
    "ratio",
)


def run(args: BenchArgs) -> int:
    """Measure, print the table, write the file."""
    if args.out is not None:
        check_target(args.out, args.overwrite)
    config = BenchConfig(**{field.name: getattr(args, field.name) for field in fields(BenchConfig)})
    lines = Console(file=sys.stderr if console.json_mode() else sys.stdout, highlight=False, soft_wrap=True)
    found = bench(config, console.say, partial(tracked, title="rounds", console=lines))
    if args.out is not None:
        content = json.dumps(console.plain(found), indent=1, allow_nan=False) + "\n"
        write_atomically(args.out, content.encode())
    console.result(found, describe(found) + (f"\nwrote {args.out}" if args.out else ""))
    return 0


def describe(found: BenchResult) -> str:
    """The machine, the table, and what it says about limits."""
    env, product, copy = found.environment, found.product_gflop_per_s, found.copy_gb_per_s
    cores, threads = env["cores_of_the_machine"], env["cores_of_this_process"]
    jax = env["versions"]["jax"]
    lines = [
        f"{env['cpu']}, {threads} of {cores} cores, {found.backend}, {found.config.dtype}, jax {jax}, "
        f"{len(found.rows[0].seconds)} rounds",
        f"matrix product {product['best']:,.0f} GFLOP/s best, {product['median']:,.0f} median; "
        f"memory {copy['best']:,.1f} GB/s best, {copy['median']:,.1f} median: work with fewer than "
        f"{product['best'] / copy['best']:,.0f} FLOP per byte is bound by memory",
        "",
        console.table(_columns(found), [_row(row, found) for row in found.rows]),
        "",
    ]
    lines += [f"{row.model} {row.row}: {row.note}" for row in found.rows if row.note]
    lines += _loader_against_steps(found.rows)
    return "\n".join([*lines, found.comparison])


def _columns(found: BenchResult) -> tuple[str, ...]:
    return tuple(name for name, wanted in zip(_COLUMNS, _wanted(found), strict=True) if wanted)


def _wanted(found: BenchResult) -> list[bool]:
    """A column that would be empty is left out."""
    alone = any(row.peak_mib is not None or row.first_s is not None for row in found.rows)
    compared = any(row.peer_over_ours is not None for row in found.rows)
    return [True] * 6 + [alone] * 2 + [compared] * 2


def _row(row: RowResult, found: BenchResult) -> list[str]:
    theirs = None if row.peer_seconds is None else statistics.median(row.peer_seconds)
    cells = [
        f"{row.model} {row.row}, {row.pixels} px",
        str(row.images),
        f"{row.median_s:.4f}",
        f"{row.images_per_s:,.2f}",
        _number(row.gflop, ".1f"),
        _number(row.share, ".0%"),
        _number(row.first_s, ".1f"),
        _number(row.peak_mib, ",.0f"),
        _number(theirs, ".4f"),
        _number(row.peer_over_ours, ".2f"),
    ]
    return [cell for cell, wanted in zip(cells, _wanted(found), strict=True) if wanted]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _loader_against_steps(rows: Sequence[RowResult]) -> list[str]:
    """Whether the loader would keep a step waiting, one line per step."""
    speed: dict[tuple[str, Any], float] = {(row.model, row.row): row.images_per_s for row in rows}
    lines = []
    for (model, name), images in speed.items():
        if name in ("samed", "decoder") and (model, "loader") in speed:
            times = speed[model, "loader"] / images
            verdict = "keeps up" if times >= 1 else "holds it up"
            lines.append(
                f"{model}: one loader thread makes {times:,.1f} times the images a {name} step takes; it {verdict}"
            )
    return lines
