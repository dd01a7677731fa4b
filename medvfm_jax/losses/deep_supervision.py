"""Deep supervision: the loss of a network's coarser outputs, added to that of its finest with falling weights."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from einops import reduce
from jax import Array

from medvfm_jax.types import IGNORE, Prediction


def stage_weights(stages: int) -> tuple[float, ...]:
    """Weights of so many outputs, the finest first: halved from each to the next, their sum 1.

    The coarsest of three or more gets none, as in nnU-Net.
    """
    weights = [0.5**i for i in range(stages)]
    if stages > 2:
        weights[-1] = 0.0
    return tuple(weight / sum(weights) for weight in weights)


def coarse_target(target: Array, shape: tuple[int, ...]) -> Array:
    """Shares of classes (C, D, H, W) -> those of the cells of a coarser grid (C, *shape).

    A cell counts if at least half of its voxels do, and IGNORE stands in all classes where it does not.
    """
    known = (target != IGNORE).astype(jnp.float32)
    cells = {name: n // m for name, n, m in zip("ijk", target.shape[1:], shape)}
    pattern = "c (d i) (h j) (w k) -> c d h w"
    share = reduce(jnp.where(target == IGNORE, 0.0, target), pattern, "mean", **cells)
    counted = reduce(known, pattern, "mean", **cells)
    return jnp.where(counted >= 0.5, share / jnp.maximum(counted, 0.5), jnp.float32(IGNORE))


def deeply_supervised(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of predictions -> the same summed over the stages of those that have coarser logits, with `stage_weights`.

    Args:
        function: (prediction, target (C, D, H, W), weight) -> loss, or (loss, terms).

    Returns:
        The same function for predictions without coarser logits; the terms are those of the finest.

    References:
        Isensee et al. 2021 (nnU-Net), https://doi.org/10.1038/s41592-020-01008-z
    """

    def loss(prediction: Prediction, target: Array, weight: Array) -> Any:
        value = function(prediction, target, weight)
        if not prediction.coarse:
            return value
        finest, *others = stage_weights(1 + len(prediction.coarse))
        total, terms = value if isinstance(value, tuple) else (value, {})
        total = finest * total
        for logits, share in zip(prediction.coarse, others, strict=True):
            if share:
                at_stage = function(Prediction(logits), coarse_target(target, logits.shape[1:]), weight)
                total = total + share * (at_stage[0] if isinstance(at_stage, tuple) else at_stage)
        return total, terms

    return loss
