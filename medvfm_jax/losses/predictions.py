"""Losses on whole predictions: prompts, several masks per prompt, named terms.

`on_prediction` lifts any loss of `losses.segmentation` to a `Prediction`; `weighted` adds losses up and
reports each; `sam_loss` is SAM's own objective.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.catalog import Catalog
from medvfm_jax.losses import segmentation
from medvfm_jax.losses.segmentation import LossShapeMismatch, Shares, Target
from medvfm_jax.types import MedvfmError, Prediction

PixelLoss = Callable[..., Any]  # (logits, target, valid=None) -> scalar, or (scalar, {term: scalar})
PredictionLoss = Callable[..., Any]  # (prediction, target, weight=None) -> the same


class UnknownLoss(MedvfmError):
    """A loss name that does not exist."""


LOSSES: Catalog[PixelLoss] = Catalog(
    "loss of pixels",
    {
        "dice": segmentation.dice,
        "cross_entropy": segmentation.cross_entropy,
        "focal": segmentation.focal,
        "dice_ce": segmentation.dice_ce,
    },
    UnknownLoss,
)


def weighted_mean(values: Array, weight: Array | None = None) -> Array:
    """Σ w v / Σ w; 0 when every weight is 0.

    Args:
        values: (N,).
        weight: (N,), or None for ones.

    Returns:
        () mean.
    """
    if weight is None:
        return values.mean()
    weight = jnp.asarray(weight, jnp.float32)
    total = weight.sum()
    kept = jnp.where(weight > 0, values, 0.0)  # a padded entry may be infinite; 0 * inf is not 0
    return (kept * weight).sum() / jnp.where(total > 0, total, 1.0)


def weighted(**terms: float | tuple[float, PixelLoss]) -> PixelLoss:
    """Sum of losses that reports its parts.

    Args:
        **terms: `dice=0.8` a loss of this package by name and its weight; `mine=(0.5, function)` any function of
            (logits, target, valid).

    Returns:
        (logits, target, valid=None) -> (total, {name: term}).

    Raises:
        UnknownLoss: a bare weight whose name is not in `LOSSES`.
    """
    parts: dict[str, tuple[float, PixelLoss]] = {
        name: term if isinstance(term, tuple) else (term, LOSSES[name]) for name, term in terms.items()
    }

    def loss(logits: Array, target: Array, valid: Array | None = None) -> tuple[Array, dict[str, Array]]:
        values = {name: function(logits, target, valid) for name, (_, function) in parts.items()}
        total = sum((parts[name][0] * value for name, value in values.items()), jnp.float32(0.0))
        return total, values

    return loss


def _check_promptable(prediction: Prediction, target: Array) -> None:
    logits = prediction.logits
    if logits.ndim not in (4, 5) or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise LossShapeMismatch(
            f"the prediction has logits of shape {logits.shape} and the target has shape {target.shape}; "
            "expected logits (Q, M, h, w) with a target (Q, h, w), or semantic (C, h, w) with (h, w) or (C, h, w); "
            "of volumes with one more axis"
        )


def on_prediction(loss: PixelLoss) -> PredictionLoss:
    """Make a loss of logits one of predictions, for both kinds of them.

    Semantic: logits (C, h, w), target (h, w) of class indices, or (C, h, w) of shares, which the loss gets as
    `Shares`: the loss itself; a scalar weight of 0 switches the example off. Of volumes (C, d, h, w) with shares.
    Promptable: logits (Q, M, h, w), target (Q, h, w), weight (Q,): for each prompt the best of its M masks
    (SAM's answer to ambiguous prompts; with M = 1 the only one), then the weighted mean over prompts. Terms
    follow suit.

    Args:
        loss: (logits, target) -> () or (total, {name: term}).

    Returns:
        (prediction, target, weight=None) -> the same kind of result.
    """

    def pair(logits: Array, target: Target) -> tuple[Array, dict[str, Array]]:
        value = loss(logits, target)
        return value if isinstance(value, tuple) else (value, {})

    def best_of_masks(logits: Array, target: Array) -> tuple[Array, dict[str, Array]]:
        totals, terms = jax.vmap(pair, in_axes=(0, None))(logits, target)
        chosen = jnp.argmin(totals)
        return jax.tree.map(lambda value: value[chosen], (totals, terms))

    def lifted(prediction: Prediction, target: Array, weight: Array | None = None) -> Any:
        logits = prediction.logits
        shares = target.shape == logits.shape
        if shares or (logits.ndim == 3 and target.shape == logits.shape[1:]):
            value, terms = pair(logits, Shares(target) if shares else target)
            if weight is not None:
                on = jnp.asarray(weight, jnp.float32) > 0
                value, terms = jax.tree.map(lambda x: jnp.where(on, x, 0.0), (value, terms))
        else:
            _check_promptable(prediction, target)
            totals, per_prompt = jax.vmap(best_of_masks)(logits, target)
            value, terms = jax.tree.map(lambda x: weighted_mean(x, weight), (totals, per_prompt))
        return (value, terms) if terms else value

    return lifted


def sam_loss(
    prediction: Prediction,
    target: Array,
    weight: Array | None = None,
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_weight: float = 1.0,
    all_iou: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """SAM's objective: focal and Dice of the best mask, and the error of its predicted IoU.

    Per prompt: focal_weight · focal + dice_weight · dice of each mask, the smallest of the M is kept, plus the squared
    error of that mask's predicted IoU against the IoU it really has. Weighted mean over prompts.

    Args:
        prediction: logits (Q, M, h, w), iou (Q, M).
        target: (Q, h, w).
        weight: (Q,) of the prompts, 0 marks padding; None for ones.
        focal_weight: of `focal`.
        dice_weight: of `dice`.
        iou_weight: of the squared error of the predicted IoU.
        all_iou: that error as the mean over the M masks, as in SAM 2, instead of the kept one's.

    Returns:
        (() loss, {"focal", "dice", "iou"}).

    Raises:
        LossShapeMismatch: other shapes.

    References:
        Kirillov et al., ICCV 2023, appendix A, https://arxiv.org/abs/2304.02643
    """
    _check_promptable(prediction, target)
    if prediction.iou is None:
        raise LossShapeMismatch(
            "the prediction has no IoU estimates; sam_loss needs those of a SAM mask decoder"
        )

    def one_mask(logits: Array, estimate: Array, mask: Array) -> tuple[Array, dict[str, Array]]:
        terms = {
            "focal": segmentation.focal(logits, mask),
            "dice": segmentation.dice(logits, mask),
            "iou": (estimate.astype(jnp.float32) - segmentation.mask_iou(logits, mask)) ** 2,
        }
        return focal_weight * terms["focal"] + dice_weight * terms["dice"], terms

    def one_prompt(logits: Array, estimates: Array, mask: Array) -> dict[str, Array]:
        totals, terms = jax.vmap(one_mask, in_axes=(0, 0, None))(logits, estimates, mask)
        chosen = jnp.argmin(totals)
        best = {name: value[chosen] for name, value in terms.items()}
        if all_iou:
            best["iou"] = terms["iou"].mean()
        return best

    per_prompt = jax.vmap(one_prompt)(prediction.logits, prediction.iou, target)
    terms = {name: weighted_mean(value, weight) for name, value in per_prompt.items()}
    return focal_weight * terms["focal"] + dice_weight * terms["dice"] + iou_weight * terms["iou"], terms
