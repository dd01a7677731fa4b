"""Steps of integers found by search: the least error of a layer's output, weighted by the loss's curvature."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.adapters.integer_inputs import Form, round_to
from medvfm_jax.adapters.integer_weights import largest
from medvfm_jax.compress.calibration import Rows

LEAST, MOST = 0.01, 1.2  # of a step that covers all values: the grid of PTQ4ViT


class Steps(NamedTuple):
    """What one layer is rounded with.

    Attributes:
        weights: step of each output, (out,).
        form: of the input.
        inputs: step of the input, see ``integer_inputs.round_to``.
        error: curvature-weighted squared error of the output, a sum over sampled places.
    """

    weights: NDArray[np.float32]
    form: Form
    inputs: NDArray[np.float32]
    error: float


def search(rows: Rows, kernel: NDArray[np.float32], bits: int, candidates: int, rounds: int) -> Steps:
    """Steps of the weights (one of each output) and of the input (one), found in turns.

    Minimises the sum over sampled places and outputs of h (y' - y)^2, where y' is the output with both rounded and h
    ``Rows.curvature``, over a grid of ``candidates`` shares, from ``LEAST`` to ``MOST``, of the
    steps that cover the largest value.

    Args:
        rows: what the layer multiplies on calibration images.
        kernel: its weights, (..., out).
        bits: of both.
        candidates: shares that are tried.
        rounds: turns.

    Returns:
        The best steps found, never worse than those that cover the largest value.

    References:
        Yuan et al. 2022, "PTQ4ViT", https://arxiv.org/abs/2111.12293, equations 5 to 8.
    """
    outputs = kernel.shape[-1]
    depthwise = rows.product.kind == "depthwise"
    w = kernel.reshape(-1, outputs).astype(np.float32)
    weight = rows.curvature
    y = product(depthwise, rows.x, w)
    form, cover = input_form(rows, bits)
    top = np.abs(w).max(0)
    of_weights = np.where(top > 0, top, 1).astype(np.float32) / largest(bits)
    shares = np.unique(np.append(np.linspace(LEAST, MOST, candidates), 1.0)).astype(np.float32)

    def errors(x: NDArray, steps: NDArray) -> NDArray:
        return (weight * np.square(product(depthwise, x, _rounded(w, steps, bits)) - y)).sum(0)

    best_w, best_x = of_weights, cover
    least = errors(round_to(form, rows.x, best_x, bits), best_w)
    for _ in range(rounds):
        x = round_to(form, rows.x, best_x, bits)
        for share in shares:
            found = errors(x, of_weights * share)
            better = found < least
            best_w, least = np.where(better, of_weights * share, best_w), np.minimum(found, least)
        total = least.sum()
        for share in shares:
            step = cover * share  # of asymmetric levels both ends move
            found = errors(round_to(form, rows.x, step, bits), best_w)
            if found.sum() < total:
                best_x, least, total = step, found, found.sum()
    return Steps(best_w.astype(np.float32), form, best_x, float(least.sum()))


def input_form(rows: Rows, bits: int) -> tuple[Form, NDArray[np.float32]]:
    """Which levels an input gets, and the steps with which they cover all of its values."""
    half = 2 ** (bits - 1)
    if rows.gelu:
        return "gelu", np.array([max(rows.high, 1e-8) / (half - 1)], np.float32)
    if rows.product.window is not None:
        low, high = min(rows.low, 0.0), max(rows.high, 0.0)
        return "asymmetric", np.array([max(high - low, 1e-8) / (2 * half - 1), low], np.float32)
    return "symmetric", np.array([max(abs(rows.low), abs(rows.high), 1e-8) / (half - 1)], np.float32)


def operand_step(form: Form, values: NDArray, bits: int, candidates: int) -> NDArray[np.float32]:
    """Step of an operand of attention with the least squared error of sampled values.

    Of a softmax the finer step is 1 / (2^(bits-1) - 1) divided by a power of two, as in PTQ4ViT. Its error is that of
    an average with values whose mean is as large as their deviation: of N shares p, each 1 / N on average, that become
    p + d, the square of the sum of all d, which is mean(d) / mean(p), and the sum of all d^2, which is
    mean(d^2) / mean(p). By d^2 alone thousands of small shares are rounded to 0 for the sake of one large share.
    """
    half = 2 ** (bits - 1)
    if form == "softmax":
        tried = [np.array([2.0**-m / (half - 1)], np.float32) for m in range(0, 16)]
        mean = max(float(values.mean()), np.finfo(np.float32).tiny)
        moved = [(round_to(form, values, step, bits) - values).astype(np.float64) for step in tried]
        found = [(d.mean() / mean) ** 2 + np.square(d).mean() / mean for d in moved]
        return tried[int(np.argmin(found))]
    cover = max(float(np.abs(values).max()), 1e-8) / (half - 1)
    shares = np.unique(np.append(np.linspace(LEAST, MOST, candidates), 1.0))
    tried = [np.array([cover * share], np.float32) for share in shares]
    found = [float(np.square(round_to(form, values, step, bits) - values).sum()) for step in tried]
    return tried[int(np.argmin(found))]


def product(depthwise: bool, x: NDArray, w: NDArray) -> NDArray:
    """Rows of inputs times weights (K, out): (n, K), or of a depthwise convolution (n, taps, out) -> (n, out)."""
    return np.einsum("ntc,tc->nc", x, w) if depthwise else x @ w


def _rounded(w: NDArray, steps: NDArray, bits: int) -> NDArray:
    return np.clip(np.round(w / steps), -largest(bits), largest(bits)) * steps
