"""Weights rounded one input after another, what each loses put onto the inputs that are still to come (GPTQ)."""

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.adapters.integer_weights import quantised, rounded

DAMPING = 0.01  # of the mean second moment, so that inputs that are always 0 or always alike do no harm


def compensated(
    w: NDArray[np.float32], moment: NDArray, bits: int, group: int, candidates: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and scales of W (in, out), as ``quantised`` gives them, with a smaller error of x W.

    Inputs are rounded in order. With C = E x^T x, damped, the rest of W that minimises E |x (W - W')|^2 while the
    inputs before are as rounded is W_j - U_ij (W_i - W'_i) / U_ii for every j > i, where U^T U = C^(-1), U upper
    triangular. Scales of a group of inputs are chosen when its first one is reached.

    Args:
        w: (in, out).
        moment: C, (in, in).
        bits: of an integer.
        group: inputs that share a scale, 0 for all.
        candidates: scales that are tried.

    Returns:
        (in, out), (groups, out).

    References:
        Frantar et al. 2022, https://arxiv.org/abs/2210.17323, algorithm 1.
    """
    rest, inputs = w.astype(np.float64), len(w)
    group = min(group or inputs, inputs)
    size = max(float(np.trace(moment)) / inputs, np.finfo(float).tiny)
    inverse = np.linalg.inv(moment / size + DAMPING * np.eye(inputs))
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    codes, scales = np.zeros(w.shape, np.int8), []
    for start in range(0, inputs, group):
        end = min(start + group, inputs)
        _, scale = quantised(rest[start:end].astype(np.float32), bits, 0, candidates)
        scales.append(scale[0])
        lost = np.empty((end - start, w.shape[1]))
        for i in range(start, end):
            codes[i] = rounded(rest[i], scale[0], bits)
            lost[i - start] = (rest[i] - codes[i] * scale[0]) / upper[i, i]
            rest[i + 1 : end] -= np.outer(upper[i, i + 1 : end], lost[i - start])
        rest[end:] -= upper[start:end, end:].T @ lost
    return codes, np.stack(scales).astype(np.float32)
