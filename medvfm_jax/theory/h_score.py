"""How far apart the classes lie in features, against how far all features spread: the H-score."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def h_score(features: ArrayLike, classes: ArrayLike, *, shrink: bool = False) -> float:
    """tr(C^+ B): C the covariance of the features, B that of the means of their classes.

    Between 0, all classes have the same mean, and the number of classes less one (or the rank of C, if it is less):
    within a class nothing varies. Of few examples for their features it is near that whatever they are: by chance it
    is already d (K - 1) / n. ``shrink`` is meant for that: C is pulled towards a multiple of the identity as Ledoit
    and Wolf estimate, and B with it.

    Args:
        features: (n, d).
        classes: class of each example (n,), of two classes at least.
        shrink: shrink the covariance.

    Returns:
        The score; a singular C is inverted where it is not 0, which is exact, as B lies there.

    Raises:
        ValueError: one class, constant features, or features that are not finite.

    References:
        Bao et al., ICIP 2019, https://doi.org/10.1109/ICIP.2019.8803726; shrunk: Ibrahim et al., ECML 2022,
        https://arxiv.org/abs/2110.06893.
    """
    features, classes = np.asarray(features, np.float64), np.asarray(classes)
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    found, member = np.unique(classes, return_inverse=True)
    if len(found) < 2:
        raise ValueError("examples of one class; two are needed at least")
    x = features - features.mean(0)
    if np.abs(x).max() <= 1e-12 * max(np.abs(features).max(), 1e-300):
        raise ValueError("features are the same for all examples")
    n = len(x)
    counts = np.bincount(member)
    means = np.stack([x[member == k].mean(0) for k in range(len(found))])
    spread, directions = np.linalg.eigh(x.T @ x / n)
    between = (counts[:, None] / n * (means @ directions) ** 2).sum(
        0
    )  # diagonal of B among the directions of C
    if not shrink:
        kept = spread > len(spread) * np.finfo(np.float64).eps * spread[-1]
        return float((between[kept] / spread[kept]).sum())
    share = shrinkage(x)
    return float((1 - share) * (between / ((1 - share) * spread + share * spread.mean())).sum())


def shrinkage(centred: NDArray) -> float:
    """Share of a multiple of the identity in the covariance with the least expected squared error.

    Args:
        centred: examples less their mean (n, d), not all 0.

    Returns:
        Between 0 and 1.

    References:
        Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4.
    """
    n, d = centred.shape
    gram = centred.T @ centred / n
    squared = float((gram**2).sum())
    distance = squared - float(np.trace(gram)) ** 2 / d  # from the identity times the mean variance
    error = (
        float((np.square(centred).sum(1) ** 2).mean()) - squared
    ) / n  # of the covariance, of so few examples
    return float(np.clip(error / distance, 0, 1)) if distance > 0 else 1.0
