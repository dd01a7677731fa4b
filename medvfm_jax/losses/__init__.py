"""Losses: segmentation on un-batched logits; distillation as functions of (student, teacher)."""

from medvfm_jax.losses.predictions import UnknownLoss, on_prediction, sam_loss, weighted, weighted_mean
from medvfm_jax.losses.segmentation import (
    LossShapeMismatch,
    cross_entropy,
    dice,
    dice_ce,
    dice_over_batch,
    focal,
    mask_iou,
)

__all__ = [
    "LossShapeMismatch",
    "UnknownLoss",
    "cross_entropy",
    "dice",
    "dice_ce",
    "dice_over_batch",
    "focal",
    "mask_iou",
    "on_prediction",
    "sam_loss",
    "weighted",
    "weighted_mean",
]
