"""What is on disk of a run -> one record; parts that are missing stay empty, broken parts are an error."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from medvfm_jax.report.overlays import draw
from medvfm_jax.train import run_directory
from medvfm_jax.types import MedvfmError

_LARGEST_PICTURE = 20_000_000  # bytes


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
    holds a file that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise NothingToReport(f"There is no {path}; give run directories made by adapt or files with scores.")
    if path.is_dir():
        folder, scores_file = path, path / run_directory.SCORES
    else:
        folder, scores_file = path.parent, path
    scores = _object(scores_file)
    config = _object(path / run_directory.CONFIG) if path.is_dir() else {}
    metrics = run_directory.read_metrics(path) if path.is_dir() else []
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


def _overlays(folder: Path, scores: Mapping[str, Any]) -> list[Overlay]:
    """The pictures that exist: PNG files as they are, arrays (image, reference, prediction) drawn here."""
    found = []
    for entry in scores.get("overlays") or []:
        png = _picture(folder, str(entry.get("png") or entry.get("arrays") or ""))
        if png is not None:
            found.append(
                Overlay(
                    png, str(entry.get("case", "")), str(entry.get("label", "")), str(entry.get("rank", "")),
                    entry.get("dice"),
                )
            )  # fmt: skip
    return found


def _picture(folder: Path, name: str) -> bytes | None:
    """PNG bytes of a file in the run directory; None if it is missing, too large, or lies elsewhere."""
    root = folder.resolve()
    for path in ((folder / "overlays" / name).resolve(), (folder / name).resolve()):
        inside = path.is_relative_to(root)
        if not name or not inside or not path.is_file() or path.stat().st_size > _LARGEST_PICTURE:
            continue
        if path.suffix == ".npz":
            return _drawn(path)
        content = path.read_bytes()
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.verify()
        except Exception:  # pillow raises many kinds for a broken file; a report without it is still one
            return None
        return content if content.startswith(b"\x89PNG") else None
    return None


def _drawn(path: Path) -> bytes | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return draw(arrays["image"], arrays["reference"], arrays["prediction"])
    except (ValueError, KeyError, OSError):
        return None
