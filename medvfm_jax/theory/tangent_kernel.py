"""The empirical neural tangent kernel of what is trained: how fast, and in how many directions, training can move."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medvfm_jax.types import MedvfmError


class NoKernel(MedvfmError, ValueError):
    """A kernel of which nothing can be said: outputs that do not depend on what is trained, or are not finite."""


class KernelSummary(NamedTuple):
    """Of the tangent kernel K = J J' of n outputs.

    Attributes:
        outputs: n.
        eigenvalues: (n,), the largest first.
        trace: their sum over n, the mean squared norm of an output's gradient.
        dimension: effective dimension, sum of l / (l + ridge).
        ridge: a share of the largest eigenvalue.
        alignment: with the residual r, r' K r / (|K| |r|^2), Frobenius norm; at most 1.
        slope: decrease of the mean logistic loss per unit of learning rate by the first step, r' K r / n^2.
        left: share of |r|^2 that gradient flow of squared error leaves after each of ``times``.
        times: in steps of the rate 1 over the largest eigenvalue.
        losses: mean logistic loss of the linearised model at the start and after each of ``times`` in steps of the
            rate 4 n over the largest eigenvalue, half of what is stable whatever the logits are.

    References:
        Jacot et al. 2018, https://arxiv.org/abs/1806.07572; Malladi et al. 2023, https://arxiv.org/abs/2210.05643 (of
        fine-tuning); Zhang 2005, https://doi.org/10.1162/0899766054323008 (effective dimension).
    """

    outputs: int
    eigenvalues: NDArray[np.float64]
    trace: float
    dimension: float
    ridge: float
    alignment: float
    slope: float
    left: tuple[float, ...]
    times: tuple[float, ...]
    losses: tuple[float, ...]


def summarise_kernel(
    kernel: ArrayLike,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    ridge: float = 0.01,
    times: Sequence[int] = (10, 100),
) -> KernelSummary:
    """What the kernel of n outputs predicts of training towards their labels.

    Args:
        kernel: (n, n), symmetric positive semi-definite.
        logits: (n,), the outputs.
        labels: (n,), 0 to 1.
        ridge: share of the largest eigenvalue below which a direction counts less than half.
        times: see ``KernelSummary.left``.

    Returns:
        Its spectrum, and what it says of the residual.

    Raises:
        NoKernel: a kernel or residual of zeros, or numbers that are not finite.
    """
    k, labels = np.asarray(kernel, np.float64), np.asarray(labels, np.float64)
    r = labels - probability(logits)
    if not (np.isfinite(k).all() and np.isfinite(r).all()):
        raise NoKernel(
            "Outputs or their gradients are not finite; check the data (medvfm check) and the weights."
        )
    if not k.any():
        raise NoKernel(
            "No output depends on what is trained at this point; another --adapter has other starting values."
        )
    if not r.any():
        raise NoKernel(
            "The model is right about every output that was looked at; nothing is left to train towards."
        )
    values, vectors = np.linalg.eigh(k)
    values = np.maximum(values[::-1], 0)
    share = (vectors[:, ::-1].T @ r) ** 2
    n, size = len(r), float(r @ r)
    cut = ridge * values[0]
    left = tuple(float((np.exp(-2 * t * values / values[0]) * share).sum() / size) for t in times)
    quadratic = float(values @ share)
    falling = linearised_losses(k, logits, labels, rate=4 * n / values[0], steps=max(times))
    return KernelSummary(
        n, values, float(values.sum() / n), float((values / (values + cut)).sum()), float(cut),
        quadratic / (float(np.sqrt((values**2).sum())) * size), quadratic / n**2, left, tuple(map(float, times)),
        tuple(falling[[0, *times]].tolist()),
    )  # fmt: skip


def linearised_losses(
    kernel: ArrayLike, outputs: ArrayLike, labels: ArrayLike, *, rate: float, steps: int
) -> NDArray[np.float64]:
    """Mean logistic loss of a linearised model before and after each step of gradient descent, from its kernel alone.

    Args:
        kernel: (n, n).
        outputs: (n,), logits at the start.
        labels: (n,), 0 to 1.
        rate: learning rate.
        steps: of gradient descent on the mean loss.

    Returns:
        (steps + 1,).
    """
    k, f, y = (np.asarray(x, np.float64) for x in (kernel, outputs, labels))
    losses = []
    for step in range(steps + 1):
        losses.append(float((np.logaddexp(0, f) - y * f).mean()))
        if step < steps:
            f = f - rate / len(f) * (k @ (probability(f) - y))
    return np.array(losses)


def probability(logits: ArrayLike) -> NDArray[np.float64]:
    """Logistic function, without overflow.

    Args:
        logits: any shape.

    Returns:
        The same shape, 0 to 1.
    """
    return np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))
