"""How well classes follow from the probabilities of other classes, or of clusters of features: LEEP and N-LEEP."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

_ENERGY = 0.8  # of the features, kept for clusters
_CLUSTERS = 5  # for each class
_STEPS = 100  # of expectation maximisation, at most
_SETTLED = 1e-6  # change of the log likelihood per example that ends it


def leep(probabilities: ArrayLike, classes: ArrayLike) -> float:
    """Mean logarithm of the probability of the right class, told by the source classes that a model gives it.

    Probability of class y: the sum over source classes z of P(y | z) times the model's probability of z; P(y | z)
    is counted on the same examples, so that it is 0 where z tells y for sure and never above it.

    Args:
        probabilities: (n, z), rows that sum to 1.
        classes: class of each example (n,), of two at least.

    Returns:
        At most 0; minus the entropy of the classes where the source classes say nothing.

    Raises:
        ValueError: one class, rows that are not probabilities.

    References:
        Nguyen et al., ICML 2020, eq. 1 and 2, https://arxiv.org/abs/2002.12462.
    """
    given, classes = np.asarray(probabilities, np.float64), np.asarray(classes)
    if not (np.isfinite(given).all() and (given >= 0).all() and np.allclose(given.sum(1), 1, atol=1e-6)):
        raise ValueError("rows are not probabilities: numbers from 0 that sum to 1")
    found, member = np.unique(classes, return_inverse=True)
    if len(found) < 2:
        raise ValueError("examples of one class; two are needed at least")
    joint = np.stack([given[member == k].sum(0) for k in range(len(found))]) / len(given)
    source = joint.sum(0)
    of_source = joint / np.where(source > 0, source, 1)
    return float(np.log((given @ of_source.T)[np.arange(len(given)), member]).mean())


def n_leep(features: ArrayLike, classes: ArrayLike, *, seed: int = 0) -> float:
    """LEEP of any encoder: the source classes are Gaussian clusters of its features, five for each class.

    Clusters are found without the classes, in the principal components that hold 80 % of the variance.

    Args:
        features: (n, d).
        classes: class of each example (n,), of two at least.
        seed: of the first centres.

    Returns:
        At most 0, larger where clusters hold one class each.

    Raises:
        ValueError: one class, constant features, or features that are not finite.

    References:
        Li et al., CVPR 2021, https://arxiv.org/abs/2011.11200, section 3.2.  Differs: variances of a cluster are of
        each component alone, as there are few examples for whole covariances.
    """
    features, classes = np.asarray(features, np.float64), np.asarray(classes)
    if not np.isfinite(features).all():
        raise ValueError("features are not finite")
    x = features - features.mean(0)
    if np.abs(x).max() <= 1e-12 * max(np.abs(features).max(), 1e-300):
        raise ValueError("features are the same for all examples")
    clusters = min(_CLUSTERS * len(np.unique(classes)), len(x))
    return leep(cluster_probabilities(_principal(x), clusters, seed), classes)


def cluster_probabilities(x: NDArray, clusters: int, seed: int = 0) -> NDArray:
    """Probabilities of the clusters of a mixture of Gaussians with diagonal covariances, by expectation maximisation.

    Args:
        x: (n, d).
        clusters: k, at most n.
        seed: of the first centres: far from each other, as k-means++ draws them.

    Returns:
        (n, k), rows that sum to 1.
    """
    spread = np.maximum(x.var(0), 1e-12)
    centres, variances = (
        _first_centres(x, clusters, np.random.default_rng(seed)),
        np.tile(spread, (clusters, 1)),
    )
    shares, before = np.full(clusters, 1 / clusters), -np.inf
    for _ in range(_STEPS):
        far = ((x[:, None] - centres) ** 2 / variances + np.log(2 * np.pi * variances)).sum(2)
        logs = np.log(shares) - far / 2
        whole = logsumexp(logs, axis=1)
        held = np.exp(logs - whole[:, None])
        if whole.mean() - before < _SETTLED:
            break
        before, mass = whole.mean(), held.sum(0) + 1e-9
        centres = held.T @ x / mass[:, None]
        variances = held.T @ x**2 / mass[:, None] - centres**2
        variances = np.maximum(variances, 1e-3 * spread)  # a cluster of one example has none
        shares = mass / mass.sum()
    return held


def _first_centres(x: NDArray, clusters: int, random: np.random.Generator) -> NDArray:
    centres = [x[random.integers(len(x))]]
    for _ in range(clusters - 1):
        nearest = np.min([((x - centre) ** 2).sum(1) for centre in centres], axis=0)
        total = nearest.sum()
        centres.append(x[random.choice(len(x), p=nearest / total if total > 0 else None)])
    return np.array(centres)


def _principal(x: NDArray) -> NDArray:
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(values**2) / np.sum(values**2), _ENERGY)) + 1
    return left[:, :kept] * values[:kept]
