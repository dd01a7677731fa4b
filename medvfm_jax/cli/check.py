"""`medvfm check`: what could go wrong with a data folder later, found before any work."""

import sys
import time
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medvfm_jax.cli import console
from medvfm_jax.cli.options.check import CheckArgs
from medvfm_jax.data import Dataset, Split, open_dataset, split
from medvfm_jax.data.check import DatasetCheck, check_dataset, has_unclear_masks
from medvfm_jax.data.findings import Finding, Findings
from medvfm_jax.data.inspection import CaseFacts
from medvfm_jax.runs.progress import tracked
from medvfm_jax.types import MedvfmError

_PARTS = {"train": "training", "val": "validation", "test": "test"}


def run(args: CheckArgs) -> int:
    """Check; prints a table, a line for each problem and note, and the sums."""
    start = time.monotonic()
    opening = Findings(strict=False)
    try:
        dataset = open_dataset(
            args.data, allow_geometry_mismatch=args.allow_geometry_mismatch, offline=args.offline,
            follow_links=args.follow_links, objects=args.objects, found=opening, cached=not args.fresh,
        )  # fmt: skip
    except MedvfmError as error:  # nothing can be said about its cases
        found = DatasetCheck({}, (*opening, Finding("dataset", "error", str(error))))
        return _tell(args.data, None, None, found, time.monotonic() - start)
    parts, trouble = _split(dataset, args)
    progress = Console(stderr=True, highlight=False)
    found = check_dataset(
        dataset, parts, track=lambda items: tracked(items, "check", progress), say=console.warn, cached=not args.fresh
    )  # fmt: skip
    found = found._replace(findings=(*trouble, *found.findings))
    return _tell(args.data, dataset, parts, found, time.monotonic() - start)


def _split(dataset: Dataset, args: CheckArgs) -> tuple[Split | None, list[Finding]]:
    try:
        return split(dataset, seed=args.seed, val=args.val_fraction, test=args.test_fraction), []
    except MedvfmError as error:
        return None, [Finding("split", "error", str(error))]


def _tell(
    data: str, dataset: Dataset | None, parts: Split | None, found: DatasetCheck, seconds: float
) -> int:
    sizes, labels = [], []
    if dataset is not None:
        groups = {"all": sorted(found.facts)}
        groups |= {_PARTS[name]: list(cases) for name, cases in (parts._asdict() if parts else {}).items()}
        sizes = [_sizes(dataset, name, cases, found.facts) for name, cases in groups.items()]
        labels = [] if has_unclear_masks(dataset.findings) else _labels(dataset, found.facts)
    record = {
        "data": data, "errors": len(found.errors), "notes": len(found.notes), "seconds": round(seconds, 3),
        "findings": [f._asdict() for f in found.findings], "parts": sizes, "labels": labels,
        "cases": {case: facts.record() for case, facts in found.facts.items()},
    }  # fmt: skip
    if not console.json_mode():
        _show(sizes, labels)
    lines = [f"{finding.severity} ({finding.kind}): {finding.message}" for finding in found.findings]
    sums = f"{_count(found.errors, 'error')}, {_count(found.notes, 'note')}"
    verdict = f"{data}: {_count(found.facts, 'case')}, {sums}; {seconds:.1f} s"
    console.result(record, "\n".join([*lines, verdict]))
    return 1 if found.errors else 0


def _count(items: Sized, word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def _sizes(
    dataset: Dataset, name: str, cases: Sequence[str], facts: Mapping[str, CaseFacts]
) -> dict[str, Any]:
    """One row: whose cases, how large, how finely sampled."""
    read = [facts[case] for case in cases if case in facts and facts[case].grid]
    who = [dataset.case(case) for case in cases]
    return {
        "part": name, "cases": len(cases), "patients": len({c.patient for c in who}),
        "sites": len({c.site for c in who}), "bad": sum(bool(facts[c].problems) for c in cases if c in facts),
        "size": _range([f.grid for f in read]), "channels": sorted({f.channels for f in read}),
        "spacing": _range([f.spacing for f in read if f.spacing is not None]),
    }  # fmt: skip


def _range(rows: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Smallest, median and largest value of each axis."""
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    array = np.array(rows, float)
    return {
        name: f(array, axis=0).tolist()
        for name, f in (("least", np.min), ("median", np.median), ("most", np.max))
    }


def _labels(dataset: Dataset, facts: Mapping[str, CaseFacts]) -> list[dict[str, Any]]:
    """One row per class: the number in the files, cases that have it, pixels, pieces per picture or slice."""
    known = [f for f in facts.values() if f.pixels]
    total = sum(sum(f.pixels) + f.unlabelled for f in known)
    rows = []
    for name, index in dataset.labels.items():
        pixels = [f.pixels[index] for f in known]
        pieces = [f.pieces[index - 1] for f in known if index and f.pieces[index - 1] > 0]
        rows.append(_label_row(name, dataset.values[index], pixels, total, pieces))
    unlabelled = [f.unlabelled for f in known]
    if any(unlabelled):
        rows.append(_label_row("not labelled", dataset.ignore, unlabelled, total, []))
    return rows


def _label_row(
    name: str, value: int | None, pixels: Sequence[int], total: int, pieces: Sequence[float]
) -> dict[str, Any]:
    return {
        "label": name, "value": value, "cases": sum(p > 0 for p in pixels), "pixels": sum(pixels),
        "share": sum(pixels) / total if total else None, "pieces": float(np.mean(pieces)) if pieces else None,
    }  # fmt: skip


def _show(sizes: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]]) -> None:
    screen = Console(file=sys.stdout, highlight=False)
    if sizes:
        table = Table("part", "cases", "patients", "sites", "bad", caption_justify="left")
        table.caption = "size and spacing: least, median, most"
        table.add_column("size", no_wrap=True)
        table.add_column("spacing, mm", no_wrap=True)
        for row in sizes:
            cells = [row[name] for name in ("part", "cases", "patients", "sites", "bad")]
            table.add_row(*map(str, cells), _cell(row["size"]), _cell(row["spacing"]))
        screen.print(table)
    if labels:
        table = Table("label", "value", "cases", "pixels", "share", "pieces")
        table.caption, table.caption_justify = "pieces: per picture or slice that has the label", "left"
        for row in labels:
            share = "-" if row["share"] is None else f"{100 * row['share']:.2f} %"
            pieces = "-" if row["pieces"] is None else f"{row['pieces']:.3g}"
            table.add_row(
                escape(row["label"]),
                str(row["value"]),
                str(row["cases"]),
                f"{row['pixels']:,}",
                share,
                pieces,
            )
        screen.print(table)


def _cell(range_: Mapping[str, Sequence[float]] | None) -> str:
    if range_ is None:
        return "-"
    texts = ["×".join(f"{value:.4g}" for value in range_[name]) for name in ("least", "median", "most")]
    return texts[0] if len(set(texts)) == 1 else "\n".join(texts)
