"""How far local steps carry an average of clients from what steps on all data together would reach."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvfm_jax.types import MedvfmError


class NoDrift(MedvfmError, ValueError):
    """Gradients from which no drift follows: fewer than two clients, or a mean of zero."""


class ClientDrift(NamedTuple):
    """First-order drift of federated averaging with plain gradient steps, per unit of rate.

    After K local steps of rate r from the same point, client i has moved by -r K g_i + r^2 K (K - 1) / 2 H_i g_i, and K
    steps on the mean loss move by -r K g + r^2 K (K - 1) / 2 H g, both but for terms of r^3.

    Attributes:
        direction: (p,), mean of H_i g_i minus H g; drift = r^2 K (K - 1) / 2 times this.
        ratio: its norm over that of the mean gradient.
    """

    direction: NDArray[np.float64]
    ratio: float

    def relative(self, rate: float, steps: int) -> float:
        """Norm of the drift over that of the first-order step, r K |g|.

        Args:
            rate: of a local step.
            steps: local steps.

        Returns:
            rate (steps - 1) / 2 times ``ratio``; 0 for one step.
        """
        return rate * (steps - 1) / 2 * self.ratio

    def most_steps(self, rate: float, tolerance: float) -> int:
        """Local steps whose relative drift is at most ``tolerance``.

        Args:
            rate: of a local step.
            tolerance: above 0.

        Returns:
            1 at least; 10^9 where there is no drift.
        """
        slope = rate * self.ratio / 2
        return 1 + min(int(tolerance / slope), 10**9 - 1) if slope > 0 else 10**9


def client_drift(
    gradients: ArrayLike, own: ArrayLike, whole: ArrayLike, weights: Sequence[float] | None = None
) -> ClientDrift:
    """Drift from gradients and products of each client's second derivatives.

    Args:
        gradients: (N, p), g_i of each client's loss.
        own: (N, p), H_i g_i, each with its own gradient.
        whole: (p,), H g of the mean loss.
        weights: of the clients, summing to 1; by default equal.

    Returns:
        Its direction, and its size relative to the mean gradient.

    Raises:
        NoDrift: fewer than two clients, a mean gradient of 0, or numbers that are not finite.

    References:
        Li et al. 2020, https://arxiv.org/abs/1907.02189, theorem 4 (bias of a constant rate); Charles and Konecny 2021,
        https://arxiv.org/abs/2103.05032 (what local steps minimise).
    """
    g, hg, mean_hg = (np.asarray(x, np.float64) for x in (gradients, own, whole))
    if len(g) < 2:
        raise NoDrift(
            "Drift needs two clients at least; a table with the columns file and site is sites.csv."
        )
    share = np.full(len(g), 1 / len(g)) if weights is None else np.asarray(weights, np.float64)
    if not (np.isfinite(g).all() and np.isfinite(hg).all() and np.isfinite(mean_hg).all()):
        raise NoDrift("Gradients are not finite; check the data (medvfm check) and the weights.")
    length = float(np.linalg.norm(share @ g))
    if length == 0:
        raise NoDrift("The mean gradient is 0: the model is at rest, and no step has a size to compare with.")
    direction = share @ hg - mean_hg
    return ClientDrift(direction, float(np.linalg.norm(direction)) / length)
