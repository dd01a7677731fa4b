"""What is on disk of a run -> one record; parts that are missing stay empty, broken parts are an error."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax.report.overlays import draw
from medvfm_jax.train import run_directory
from medvfm_jax.train.assemble import check_run
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts

_LARGEST_PICTURE = 200_000_000  # bytes


class NothingToReport(MedvfmError):
    """A path that holds no run, or a run whose files cannot be read."""


class Overlay(NamedTuple):
    """One picture: PNG bytes and what its caption says."""

    png: bytes
    case: str
    label: str
    rank: str  # best, median, worst
    dice: float | None


class RunRecord(NamedTuple):
    """A run as the report sees it; `scores`, `config` and `metrics` may be empty."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    scores: Mapping[str, Any]
    overlays: list[Overlay]

    @property
    def trained(self) -> Mapping[str, Any]:
        """{"parameters", "total", "bytes"} or {} for a model as it is."""
        return (self.scores.get("provenance") or {}).get("trained") or {}

    def summary_row(self, metric: str, label: str | None = None) -> Mapping[str, Any] | None:
        """The summary of a metric for a label; by default over all labels, or the only one."""
        rows = [r for r in self.scores.get("summary", []) if r.get("metric") == metric]
        wanted = [r for r in rows if r.get("label") == (label or "all")]
        return (wanted or ([] if label else rows) or [None])[0]


def load(path: Path) -> RunRecord:
    """Run directory, or a scores file that `evaluate --out` wrote -> record.

    Raises NothingToReport when the path does not exist, holds neither settings nor scores nor metrics, or
    holds a file that cannot be read or has another shape than `adapt` and `evaluate` write; ForeignDelta and
    BadDelta for a delta that the run did not make.
    """
    path = Path(path)
    if not path.exists():
        raise NothingToReport(f"There is no {path}; give run directories made by adapt or files with scores.")
    if path.is_dir():
        folder, scores_file = path, path / run_directory.SCORES
    else:
        folder, scores_file = path.parent, path
    scores = _scores(scores_file)
    config = _object(path / run_directory.CONFIG) if path.is_dir() else {}
    if not isinstance(config.get("resolved", {}), dict):
        raise NothingToReport(
            f"{path / run_directory.CONFIG} is not what adapt writes: 'resolved' is damaged."
        )
    if "resolved" in config and (folder / run_directory.DELTA).is_file():
        delta = folder / run_directory.DELTA
        check_run(config, artifacts.read_metadata(delta), delta)
    metrics = _metrics(path) if path.is_dir() else []
    if path.is_dir() and not (scores or config or metrics):
        raise NothingToReport(
            f"{path} is not a run directory: it has neither {run_directory.SCORES} nor {run_directory.CONFIG} "
            f"nor {run_directory.METRICS}; give the --out folder of adapt or evaluate."
        )
    if not path.is_dir() and "summary" not in scores:
        raise NothingToReport(f"{path} holds no scores; give a run directory or a file that evaluate wrote.")
    name = path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}/{path.stem}"
    return RunRecord(name, folder, config, metrics, scores, _overlays(folder, scores))


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise NothingToReport(
            f"{path} cannot be read as JSON ({error}); evaluate the run again to write it anew."
        ) from error
    if not isinstance(record, dict):
        raise NothingToReport(f"{path} holds a {type(record).__name__}, a JSON object was expected.")
    return record


def _scores(path: Path) -> dict[str, Any]:
    """The scores, checked far enough that a page can be written from them."""
    scores = _object(path)
    damaged = _damaged(scores)
    if damaged:
        raise NothingToReport(
            f"{path} is not what evaluate writes: '{damaged}' is damaged; evaluate the run again."
        )
    return {key: part for key, part in scores.items() if part is not None}


def _damaged(scores: Mapping[str, Any]) -> str | None:
    """Name of the first part that has another shape than `evaluate` gives it."""
    provenance = scores.get("provenance")
    parts = {"provenance": provenance, "empty": scores.get("empty")}
    if isinstance(provenance, dict):
        parts |= {key: provenance.get(key) for key in ("versions", "trained")}
    for name, part in parts.items():
        if not isinstance(part, dict | None):
            return name
    for name in ("summary", "cases", "overlays", "skipped"):
        rows = scores.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return name
    for row in scores.get("summary") or ():
        if not isinstance(row.get("metric"), str) or not isinstance(row.get("label"), str):
            return "summary"
    rows = scores.get("cases") or []
    named = all(row.get("label") is not None and (row.get("case") or row.get("patient")) for row in rows)
    return None if named and not _mixed(rows) else "cases"


def _mixed(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Columns that hold numbers in some rows and something else in others, or lists or objects."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for column, value in row.items():
            if value is not None and column not in ("case", "patient", "site", "label"):
                kinds.setdefault(column, set()).add(float if type(value) is int else type(value))
    return {column for column, found in kinds.items() if len(found) > 1 or found & {list, dict}}


def _metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        return [line for line in run_directory.read_metrics(folder) if isinstance(line, dict)]
    except (OSError, ValueError) as error:  # a line that is cut off is left out; a file of bytes is not one
        raise NothingToReport(f"{folder / run_directory.METRICS} cannot be read ({error}).") from error


def _overlays(folder: Path, scores: Mapping[str, Any]) -> list[Overlay]:
    """The pictures whose arrays (image, reference, prediction) are there, drawn."""
    found = []
    for entry in scores.get("overlays") or []:
        png = _picture(folder, str(entry.get("arrays") or ""))
        if png is not None:
            names = (str(entry.get(key) or "") for key in ("case", "label", "rank"))
            found.append(Overlay(png, *names, entry.get("dice")))
    return found


def _picture(folder: Path, name: str) -> bytes | None:
    """PNG bytes from arrays in the folder; None if the file is missing, damaged, too large, or elsewhere."""
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(folder.resolve())  # scores may come from somebody else
        if not inside or not path.is_file() or path.stat().st_size > _LARGEST_PICTURE:
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return draw(arrays["image"], arrays["reference"], arrays["prediction"])
    except Exception:  # a broken file raises many kinds; a report without the picture is still one
        return None
