"""What is on disk of a run -> one record; parts that are missing stay empty, broken parts are an error."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax import json_text, local_paths
from medvfm_jax.predict.scored_cases import FORMAT
from medvfm_jax.report.overlays import draw
from medvfm_jax.report.record_shapes import damaged_audit, damaged_scores, damaged_settings
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.goodput import Goodput, of_run
from medvfm_jax.runs.settings_record import contradiction
from medvfm_jax.train.stored_delta import check_run
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts

AUDIT = "audit.json"
_LARGEST_PICTURE = 200_000_000  # bytes, of the file and of what is in it


class NothingToReport(MedvfmError):
    """A path that holds no run, or a run whose files cannot be read."""


class Overlay(NamedTuple):
    """One picture and what its caption says.

    Attributes:
        png: bytes of the picture.
        case: name.
        label: class.
        rank: best, median or worst.
        dice: of this case and class, None where undefined.
    """

    png: bytes
    case: str
    label: str
    rank: str  # best, median, worst
    dice: float | None


class RunRecord(NamedTuple):
    """A run as the report sees it; `scores`, `config` and `metrics` may be empty.

    Attributes:
        name: of the folder.
        folder: run directory.
        config: settings of the run.
        metrics: lines of metrics.jsonl.
        scores: contents of scores.json.
        overlays: pictures of cases.
        damaged: numbers of the lines of metrics.jsonl that hold no record and are left out.
        unread: how many of the overlays that the scores name could not be read.
        audit: what `medvfm audit` found, may be empty.
        unproven: what could not be checked about the delta, "" for nothing.
        goodput: where the wall time of training went, None if it is not known.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    scores: Mapping[str, Any]
    overlays: list[Overlay]
    damaged: tuple[int, ...] = ()
    unread: int = 0
    audit: Mapping[str, Any] = {}
    unproven: str = ""
    goodput: Goodput | None = None

    @property
    def trained(self) -> Mapping[str, Any]:
        """{"parameters", "total", "bytes"} or {} for a zero-shot model."""
        return (self.scores.get("provenance") or {}).get("trained") or {}

    def summary_row(self, metric: str, label: str | None = None) -> Mapping[str, Any] | None:
        """The summary of a metric for a label; by default over all labels, or the only one."""
        rows = [r for r in self.scores.get("summary", []) if r.get("metric") == metric]
        wanted = [r for r in rows if r.get("label") == (label or "all")]
        return (wanted or ([] if label else rows) or [None])[0]


def load(path: Path) -> RunRecord:
    """Read what a run directory holds, or a scores file that `evaluate --out` wrote.

    Args:
        path: folder or file.

    Returns:
        The record.

    Raises:
        NothingToReport: the path does not exist, holds neither settings nor scores nor metrics, or holds a file that
            cannot be read or has another shape than `adapt` and `evaluate` write.
        ForeignDelta: the run did not make the delta.
        BadDelta: the delta is damaged.
    """
    path = Path(path)
    local_paths.check(path, "The run to report on")
    if not path.exists():
        raise NothingToReport(f"There is no {path}; give run directories made by adapt or files with scores.")
    if path.is_dir():
        folder, scores_file = path, path / run_directory.SCORES
    else:
        folder, scores_file = path.parent, path
    scores = _scores(scores_file)
    config = _object(path / run_directory.CONFIG) if path.is_dir() else {}
    wrong = damaged_settings(config)
    if wrong:
        raise NothingToReport(
            f"{path / run_directory.CONFIG} is not what adapt writes: '{wrong:.80}' is damaged; restore the file, or "
            "move it away to report without it."
        )
    if odd := contradiction(config):
        raise NothingToReport(
            f"{path / run_directory.CONFIG} contradicts itself: {odd}; restore the file, or move it away to report "
            "without it."
        )
    unproven = ""
    if "resolved" in config and (folder / run_directory.DELTA).is_file():
        delta = folder / run_directory.DELTA
        unproven = check_run(config, artifacts.read_metadata(delta), delta)
    metrics, damaged = _metrics(path) if path.is_dir() else ([], [])
    if path.is_dir() and not (scores or config or metrics):
        raise NothingToReport(
            f"{path} is not a run directory: it has neither {run_directory.SCORES} nor {run_directory.CONFIG} "
            f"nor {run_directory.METRICS}; give the --out folder of adapt or evaluate."
        )
    if not path.is_dir() and "summary" not in scores:
        raise NothingToReport(f"{path} holds no scores; give a run directory or a file that evaluate wrote.")
    name = path.resolve().name if path.is_dir() else f"{path.resolve().parent.name}/{path.stem}"
    overlays = _overlays(folder, scores)
    unread = len(scores.get("overlays") or ()) - len(overlays)
    audit = _audit(path / AUDIT) if path.is_dir() else {}
    spent = _goodput(path) if path.is_dir() else None
    return RunRecord(
        name, folder, config, metrics, scores, overlays, tuple(damaged), unread, audit, unproven, spent
    )


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json_text.parse_object(path.read_bytes())
    except (ValueError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise NothingToReport(
            f"{path} cannot be read as JSON ({why}); evaluate the run again to write it anew."
        ) from error


def _scores(path: Path) -> dict[str, Any]:
    """The scores, checked far enough that a page can be written from them; {} if there is no file."""
    scores = _object(path)
    if not path.is_file():
        return {}
    if "format" not in scores and "summary" not in scores:
        raise NothingToReport(
            f"{path} holds no scores; give a run directory or a file that evaluate wrote, or move this one away."
        )
    if scores.get("format") != FORMAT:
        has = f"format {json.dumps(scores['format'])[:40]}" if "format" in scores else "no format"
        raise NothingToReport(
            f"{path} has {has} where this version of medvfm reads format {FORMAT}: report with the version that wrote "
            "it, or evaluate the run again."
        )
    damaged = damaged_scores(scores)
    if damaged:
        raise NothingToReport(
            f"{path} is not what evaluate writes: '{damaged:.80}' is damaged; evaluate the run again."
        )
    return {key: part for key, part in scores.items() if part is not None}


def _audit(path: Path) -> dict[str, Any]:
    found = _object(path)
    damaged = damaged_audit(found)
    if damaged:
        raise NothingToReport(
            f"{path} is not what audit writes: '{damaged:.80}' is damaged; audit the run again, or move the file away."
        )
    return found


def _metrics(folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Records and the numbers of damaged lines; a file without any record is no file of metrics."""
    path, damaged = folder / run_directory.METRICS, []
    try:
        records = run_directory.read_metrics(folder, damaged)
    except run_directory.RunError as error:
        raise NothingToReport(str(error)) from error
    if damaged and not records:
        raise NothingToReport(
            f"{path} holds no record of a run; restore it, or move it away to report without it."
        )
    return records, damaged


def _goodput(folder: Path) -> Goodput | None:
    try:
        return of_run(folder)
    except run_directory.RunError as error:
        raise NothingToReport(str(error)) from error


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
        inside = path.is_relative_to(folder.resolve())  # scores may come from an untrusted source
        if not inside or not path.is_file() or path.stat().st_size > _LARGEST_PICTURE:
            return None
        with np.load(path, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > _LARGEST_PICTURE:
                return None
            return draw(arrays["image"], arrays["reference"], arrays["prediction"])
    except Exception:  # a broken file raises many kinds; a report without the picture is still one
        return None
