"""Scores of a run by site: mean with its interval at each, the mean over sites, and the worst of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.metrics.bootstrap import (
    bounds_of,
    interval,
    method,
    percentile_interval,
    resample_counts,
    resampled_means,
    t_interval,
)
from medvfm_jax.metrics.cases import INSTANCES
from medvfm_jax.metrics.summary import score_table

_DRAWS = 2000
OVER_SITES = "mean over sites"


class SiteScore(NamedTuple):
    """mean over the patients of a site; low, high: 95 % interval (`metrics.bootstrap`), None for one; n patients."""

    site: str
    mean: float
    low: float | None
    high: float | None
    n: int


def site_scores(rows: Sequence[Mapping[str, Any]], metric: str = "dice", seed: int = 0) -> list[SiteScore]:
    """Rows of scores (the "cases" of scores.json) -> one score per site in order of name, those without any left out.

    A patient's score is its mean over the labels it has; object-level rows count only if there are no others.
    """
    return [
        SiteScore(
            site,
            float(values.mean()),
            *interval(values, seed, _DRAWS, bounds=bounds_of(metric)),
            len(values),
        )
        for site, values in _by_site(rows, metric).items()
    ]


def over_sites(rows: Sequence[Mapping[str, Any]], metric: str = "dice", seed: int = 0) -> SiteScore | None:
    """Mean of the means of the sites, each site counting once; the interval draws patients within each site.

    It is Student's t if any site has few patients, and there is none if a site has only one.  It says how sure the
    mean over these very sites is, nothing about other sites.  None without any score.
    """
    sites = _by_site(rows, metric)
    if not sites:
        return None
    mean = float(np.mean([values.mean() for values in sites.values()]))
    kinds, low, high = {method(values) for values in sites.values()}, None, None
    if None not in kinds and "t" in kinds:
        parts = [(values - values.mean()) / len(values) / len(sites) for values in sites.values()]
        low, high = t_interval(mean, parts, bounds=bounds_of(metric))
    elif None not in kinds:
        draws = [_draws(values, seed + i) for i, values in enumerate(sites.values())]
        low, high = percentile_interval(np.mean(draws, axis=0))
    return SiteScore(OVER_SITES, mean, low, high, sum(map(len, sites.values())))


def worst_site(scores: Sequence[SiteScore]) -> SiteScore:
    """The site with the lowest mean (of a score that is better when larger)."""
    return min(scores, key=lambda score: score.mean)


def _by_site(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, NDArray[np.float64]]:
    """Site -> one value per patient, in order of name."""
    known = [row for row in rows if row.get(metric) is not None]
    known = [row for row in known if row["label"] != INSTANCES] or known
    found = {}
    for site in sorted({str(row.get("site") or "all") for row in known}):
        table = score_table([row for row in known if str(row.get("site") or "all") == site], metric)
        found[site] = np.nanmean(table.values, axis=1)
    return found


def _draws(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    return resampled_means(values[:, None], resample_counts(len(values), _DRAWS, seed))[:, 0]
