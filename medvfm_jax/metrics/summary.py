"""Many cases -> the summary table: mean, median, patient-level 95 % interval, n, empty masks.

The unit is the patient: cases of one patient are averaged first, so that a patient with many scans counts
once. "all" is the mean over the labels of their means.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.metrics.bootstrap import (
    bounds_of,
    method,
    percentile_interval,
    resample_counts,
    resampled_means,
    t_interval,
)
from medvfm_jax.metrics.cases import INSTANCES
from medvfm_jax.types import MedvfmError

ALL = "all"  # label of the mean over labels
_NOT_SCORES = {"volume_reference", "volume_prediction", "n_reference", "n_predicted", "slice"}


class IncompleteRow(MedvfmError):
    """A row of scores that does not say which label or which patient it belongs to."""


class ScoreTable(NamedTuple):
    """Values (patients, labels) of one metric, NaN where undefined; `cases`: defined ones per label."""

    metric: str
    patients: tuple[str, ...]
    labels: tuple[str, ...]
    values: NDArray[np.float64]
    cases: NDArray[np.int64]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def patient_of(row: Mapping[str, Any]) -> str:
    """Patient of a row, or its case when it names none; raises `IncompleteRow` when it names neither."""
    patient = row.get("patient") if row.get("patient") is not None else row.get("case")
    if patient is None or row.get("label") is None:
        raise IncompleteRow(
            f"a row of scores with the keys {', '.join(map(str, row))} lacks its label or its patient; add "
            "'label' and 'patient' (or 'case') before summarising"
        )
    return str(patient)


def metrics_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the scores that have a number in at least one row, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found |= {key: None for key, value in row.items() if _is_number(value) and key not in _NOT_SCORES}
    found.pop("case", None)
    found.pop("patient", None)
    found.pop("site", None)
    return list(found)


def score_table(rows: Sequence[Mapping[str, Any]], metric: str) -> ScoreTable:
    """Rows of `score_case` with "patient" or "case" added -> one metric, averaged within each patient."""
    patients = tuple(dict.fromkeys(patient_of(row) for row in rows))
    labels = tuple(dict.fromkeys(str(row["label"]) for row in rows if metric in row))
    sums, cases = np.zeros((2, len(patients), len(labels)))
    place = {patient: k for k, patient in enumerate(patients)}
    column = {label: k for k, label in enumerate(labels)}
    for row in rows:
        value = row.get(metric)
        if value is None or math.isnan(value):
            continue
        where = place[patient_of(row)], column[str(row["label"])]
        sums[where] += value
        cases[where] += 1
    values = np.divide(sums, cases, out=np.full_like(sums, np.nan), where=cases > 0)
    return ScoreTable(metric, patients, labels, values, cases.sum(0).astype(int))


def summarise(
    rows: Sequence[Mapping[str, Any]], seed: int = 0, n_boot: int = 2000, level: float = 0.95
) -> dict[str, Any]:
    """Score rows of many cases -> means with patient-level intervals.

    Args:
        rows: of `score_case`, with "patient" or "case" added.
        seed: of the bootstrap.
        n_boot: bootstrap samples.
        level: of the intervals.

    Returns:
        {"summary": rows, "empty": counts, ...}. A summary row: {"metric", "label", "mean", "low", "high", "interval",
        "n" (patients with a value), "n_cases", "median"}; "low" and "high" bound the interval, whose kind "interval"
        names: "t", "bootstrap", or None for fewer than two patients or an infinite mean (see `metrics.bootstrap`).
        "empty" counts the (case, label) pairs by which mask was empty.

    Raises:
        IncompleteRow: a row without its label, or without "patient" and "case".
    """
    patients = dict.fromkeys(patient_of(row) for row in rows)
    cases = {str(row.get("case", row.get("patient"))) for row in rows}
    counts = resample_counts(len(patients), n_boot, seed) if patients else np.zeros((0, 0))
    summary: list[dict[str, Any]] = []
    for metric in metrics_of(rows):
        table = score_table(rows, metric)
        draws = resampled_means(table.values, counts)
        if len([label for label in table.labels if label != INSTANCES]) > 1:
            summary.append(_over_labels(table, draws, level))
        for k, label in enumerate(table.labels):
            if not np.isnan(table.values[:, k]).all():
                numbers = _row(metric, table.values[:, k : k + 1], draws[:, k], level)
                summary.append(
                    {"metric": metric, "label": label} | numbers | {"n_cases": int(table.cases[k])}
                )
    return {
        "summary": summary,
        "empty": {
            kind: sum(row.get("empty") == kind for row in rows if row["label"] != INSTANCES)
            for kind in ("reference", "prediction", "both")
        },
        "n_cases": len(cases),
        "n_patients": len(patients),
    }


def _row(metric: str, values: NDArray, draws: NDArray, level: float) -> dict[str, Any]:
    """Values (patients, labels), bootstrap means (n_boot,) -> the numbers of one row, of the mean over labels."""
    values = values[:, ~np.isnan(values).all(0)]
    of_labels = np.nanmean(values, axis=0)
    mean = float(of_labels.mean())
    per_patient = _mean_over_labels(values)
    scored = ~np.isnan(per_patient)
    n, low, high = int(scored.sum()), None, None
    kind = method(per_patient[scored])
    if kind == "t":
        each = (values - of_labels) / (~np.isnan(values)).sum(0) / len(of_labels)
        low, high = t_interval(mean, [np.nansum(each[scored], axis=1)], level, bounds_of(metric))
    elif kind == "bootstrap":
        low, high = percentile_interval(draws, level)
    numbers = {"mean": mean, "low": low, "high": high, "interval": kind, "n": n}
    return numbers | {"median": float(np.median(per_patient[scored]))}


def _mean_over_labels(values: NDArray) -> NDArray[np.float64]:
    """(..., labels) with NaN -> (...), the mean over the defined labels, NaN where there is none."""
    defined = ~np.isnan(values)
    n = defined.sum(-1)
    return np.divide(
        np.where(defined, values, 0.0).sum(-1), n, out=np.full(values.shape[:-1], np.nan), where=n > 0
    )


def _over_labels(table: ScoreTable, draws: NDArray, level: float) -> dict[str, Any]:
    keep = [k for k, label in enumerate(table.labels) if label != INSTANCES]
    numbers = _row(table.metric, table.values[:, keep], _mean_over_labels(draws[:, keep]), level)
    return {"metric": table.metric, "label": ALL} | numbers | {"n_cases": int(table.cases[keep].max())}
