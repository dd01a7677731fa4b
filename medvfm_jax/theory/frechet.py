"""Fréchet distance of the Gaussians that two samples have the moments of."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def squared_frechet(x: ArrayLike, y: ArrayLike) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of means and covariances.

    The trace of the root is the sum of the singular values of A A'^T, where C = A^T A; so covariances of fewer examples
    than features are exact too. Of few examples it is far above 0 for one distribution: hold it against what samples
    drawn from both together have.

    Args:
        x: features (n, d), two examples at least.
        y: features (m, d), two at least.

    Returns:
        0 for samples of equal moments.

    References:
        Dowson and Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X; Heusel et al., NeurIPS 2017,
        https://arxiv.org/abs/1706.08500, equation 6.
    """
    (mean, root), (other_mean, other_root) = _moments(x), _moments(y)
    both = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    spread = np.square(root).sum() + np.square(other_root).sum()
    return float(max(np.square(mean - other_mean).sum() + spread - 2 * both, 0.0))


def _moments(x: ArrayLike) -> tuple[NDArray, NDArray]:
    """Mean, and A with A^T A the covariance, of no more rows than columns."""
    x = np.asarray(x, np.float64)
    mean = x.mean(0)
    root = (x - mean) / (len(x) - 1) ** 0.5
    return mean, np.linalg.qr(root, mode="r") if len(x) > x.shape[1] else root
