"""Losses: segmentation on un-batched logits; distillation as functions of (student, teacher)."""

from medvfm_jax.losses.deep_supervision import deeply_supervised
from medvfm_jax.losses.distillation_features import (
    attention_distance,
    attention_transfer,
    cwd,
    embedding_cosine,
    embedding_mse,
    fitnets,
    mgd,
    mgd_init,
    pkd,
)
from medvfm_jax.losses.distillation_logits import decoupled_terms, dkd, hinton
from medvfm_jax.losses.distillation_masks import dice_semimetric, mask_bce, mask_distillation, mask_weighted
from medvfm_jax.losses.distillation_relations import (
    cirkd,
    cirkd_memory,
    ifvd,
    pixel_affinity,
    region_affinity,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from medvfm_jax.losses.predictions import UnknownLoss, on_prediction, sam_loss, weighted, weighted_mean
from medvfm_jax.losses.segmentation import (
    LossShapeMismatch,
    Shares,
    cross_entropy,
    dice,
    dice_ce,
    dice_over_batch,
    focal,
    mask_iou,
)

__all__ = [
    "LossShapeMismatch",
    "Shares",
    "UnknownLoss",
    "attention_distance",
    "attention_transfer",
    "cirkd",
    "cirkd_memory",
    "cross_entropy",
    "cwd",
    "decoupled_terms",
    "deeply_supervised",
    "dice",
    "dice_ce",
    "dice_over_batch",
    "dice_semimetric",
    "dkd",
    "embedding_cosine",
    "embedding_mse",
    "fitnets",
    "focal",
    "hinton",
    "ifvd",
    "mask_bce",
    "mask_distillation",
    "mask_iou",
    "mask_weighted",
    "mgd",
    "mgd_init",
    "on_prediction",
    "pixel_affinity",
    "pkd",
    "region_affinity",
    "rkd_angle",
    "rkd_distance",
    "sam_loss",
    "similarity_preserving",
    "weighted",
    "weighted_mean",
]
