"""Cases that a run, or the teachers that it learnt from, were trained on or calibrated with."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """data: sha256 of a dataset's files.  cases: of it that were trained on or validated with."""

    data: str
    cases: frozenset[str]


def seen_by(record: Mapping[str, Any]) -> tuple[Seen, ...]:
    """What a finished run has seen, its own data first, then what it was compressed with, then that of its teachers.

    record: its ``config.json``.  A private federation does not tell its cases, so that nothing is known of them.
    """
    resolved = record.get("resolved") or {}
    split, digest = resolved.get("split") or {}, resolved.get("data_sha256")
    own = frozenset(split.get("train") or ()) | frozenset(split.get("val") or ())
    found = [Seen(digest, own)] if digest and own else []
    of_teacher = (resolved.get("teacher") or {}).get("seen") or ()
    return (*found, *read(resolved.get("calibration") or ()), *read(of_teacher))


def read(rows: Iterable[Mapping[str, Any]]) -> tuple[Seen, ...]:
    """Rows of a record; what is no such row is left out."""
    return tuple(
        Seen(str(row["data_sha256"]), frozenset(map(str, row["cases"])))
        for row in rows
        if isinstance(row, Mapping) and isinstance(row.get("cases"), list) and "data_sha256" in row
    )


def rows(seen: Iterable[Seen]) -> list[dict[str, Any]]:
    """As JSON can hold it."""
    return [{"data_sha256": one.data, "cases": sorted(one.cases)} for one in seen]


def of_data(seen: Iterable[Seen], digest: str) -> frozenset[str]:
    """Cases of the data with this digest."""
    return frozenset().union(*(one.cases for one in seen if one.data == digest))
