"""Bootstrap intervals with the patient as the unit that is drawn."""

import numpy as np
from numpy.typing import NDArray


def resample_counts(n: int, n_boot: int, seed: int) -> NDArray[np.float64]:
    """-> (n_boot, n): how often each patient is drawn in each sample of size n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)


def resampled_means(values: NDArray, counts: NDArray) -> NDArray[np.float64]:
    """Values (n, k), NaN for undefined, counts (n_boot, n) -> (n_boot, k) means of the defined ones.

    NaN where a sample holds no defined value.
    """
    defined = ~np.isnan(values)
    drawn = counts @ defined
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(drawn > 0, (counts @ np.where(defined, values, 0.0)) / drawn, np.nan)


def percentile_interval(samples: NDArray, level: float = 0.95) -> tuple[float | None, float | None]:
    """Bootstrap means (n_boot,) -> percentile interval (Efron); (None, None) without any finite mean."""
    finite = samples[~np.isnan(samples)]
    if not finite.size:
        return None, None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval(
    values: NDArray, seed: int = 0, n_boot: int = 2000, level: float = 0.95
) -> tuple[float | None, float | None]:
    """One value per patient (n,), NaN for undefined -> interval of their mean (None: fewer than two)."""
    values = np.asarray(values, float)
    if np.count_nonzero(~np.isnan(values)) < 2:
        return None, None
    counts = resample_counts(len(values), n_boot, seed)
    return percentile_interval(resampled_means(values[:, None], counts)[:, 0], level)
