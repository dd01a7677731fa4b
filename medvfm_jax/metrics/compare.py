"""Paired comparison of two runs on the patients they share."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.metrics.bootstrap import bounds_of, interval, method
from medvfm_jax.metrics.cases import INSTANCES
from medvfm_jax.metrics.summary import score_table
from medvfm_jax.types import MedvfmError

_EXACT_UP_TO = 14  # patients: 2^14 sign patterns are enumerated, beyond that they are drawn


class NothingInCommon(MedvfmError):
    """Two runs that share no patient with a value of the compared metric."""


def compare(
    rows_a: Sequence[Mapping[str, Any]],
    rows_b: Sequence[Mapping[str, Any]],
    metric: str = "dice",
    label: str | None = None,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict[str, Any]:
    """Paired difference of two runs over patients, its interval and two p-values.

    A patient's difference is the mean, over ``label`` or over all labels defined in both runs, of b - a.

    Args:
        rows_a: score rows of run a, from `score_case` with "patient" or "case" added.
        rows_b: of run b.
        metric: name of the score.
        label: one label; None for the mean over all.
        seed: of bootstrap and drawn flips.
        n_boot: bootstrap samples.

    Returns:
        {"metric", "label", "n" patients compared, "mean_a", "mean_b", "difference", "low", "high" (95 % interval),
        "interval" ("t" or "bootstrap", see `metrics.bootstrap`), "p_permutation" (two-sided sign flip; exact up to 14
        patients, else 20,000 drawn flips), "exact", "p_wilcoxon" (signed rank, zeros dropped), "left_out_a",
        "left_out_b" (patients only one run could score)}. A difference with an infinite distance in it has neither
        interval nor p-value: None.

    Raises:
        NothingInCommon: no patient has the score in both runs.
    """
    cells_a, cells_b = _cells(rows_a, metric, label), _cells(rows_b, metric, label)
    common: dict[str, list[tuple[float, float]]] = {}
    for (patient, of_label), value in cells_a.items():
        if (patient, of_label) in cells_b:
            common.setdefault(patient, []).append((value, cells_b[patient, of_label]))
    if not common:
        raise NothingInCommon(
            f"the two runs share no patient with a value of '{metric}'"
            f"{f' for label {label!r}' if label else ''}; evaluate both on the same cases and profile"
        )
    a, b = np.array([np.mean(pairs, axis=0) for pairs in common.values()]).T
    with np.errstate(invalid="ignore"):
        difference = b - a  # NaN where a distance is infinite in both runs
    defined = bool(np.isfinite(difference).all())
    low, high = interval(difference, seed, n_boot, bounds=bounds_of(metric, difference=True))
    p_permutation, exact = sign_flip_test(difference, seed) if defined else (None, False)
    return {
        "metric": metric,
        "label": label,
        "n": len(common),
        "mean_a": float(a.mean()),
        "mean_b": float(b.mean()),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "interval": method(difference),
        "p_permutation": p_permutation,
        "exact": exact,
        "p_wilcoxon": wilcoxon_test(difference) if defined else None,
        "left_out_a": len({patient for patient, _ in cells_a} - set(common)),
        "left_out_b": len({patient for patient, _ in cells_b} - set(common)),
    }


def _cells(rows: Sequence[Mapping[str, Any]], metric: str, label: str | None) -> dict[tuple[str, str], float]:
    """-> {(patient, label): value} of the defined values."""
    table = score_table(rows, metric)
    wanted = [k for k, name in enumerate(table.labels) if (name == label if label else name != INSTANCES)]
    if not wanted and label is None:  # an object-level metric exists on the instance row only
        wanted = list(range(len(table.labels)))
    return {
        (patient, table.labels[k]): float(table.values[row, k])
        for row, patient in enumerate(table.patients)
        for k in wanted
        if not np.isnan(table.values[row, k])
    }


def sign_flip_test(differences: NDArray, seed: int = 0, n_draws: int = 20_000) -> tuple[float, bool]:
    """Paired differences (n,) -> two-sided p-value of their mean under random signs, and whether it is exact.

    Exact: the share of all 2^n sign patterns whose |mean| is at least the observed one. Drawn: (1 + hits) /
    (1 + draws), which is never 0. Source: Fisher's randomisation test; Phipson and Smyth 2010 for the drawn
    form.
    """
    differences = np.asarray(differences, float)
    n = len(differences)
    observed = abs(differences.mean()) * (1 - 1e-12)
    if n <= _EXACT_UP_TO:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
        return float(np.mean(np.abs(signs @ differences) / n >= observed)), True
    signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(n_draws, n))
    hits = int(np.sum(np.abs(signs @ differences) / n >= observed))
    return (1 + hits) / (1 + n_draws), False


def wilcoxon_test(differences: NDArray) -> float:
    """Paired differences (n,) -> two-sided p-value of the signed-rank test; 1 when every difference is 0."""
    from scipy import stats  # here, because importing it is a quarter of the start of every command

    moved = np.asarray(differences, float)
    moved = moved[moved != 0]
    if not moved.size:
        return 1.0
    if moved.size <= _EXACT_UP_TO:
        # The same p-value as scipy's, which takes seconds for it when differences are tied.
        return sign_flip_test(np.sign(moved) * stats.rankdata(np.abs(moved)))[0]
    return float(stats.wilcoxon(moved).pvalue)
