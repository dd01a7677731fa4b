"""Tasks that differ and help each other: pure functions of arrays for losses, federated algorithms and analyses."""

from medvfm_jax.crosstask.client_clusters import cluster_means, joined_by_cosine, number_of_clusters, parted
from medvfm_jax.crosstask.gradient_surgery import cagrad, imtl_g, mgda, nash_mtl, pcgrad
from medvfm_jax.crosstask.loss_weighting import (
    Famo,
    dwa_weights,
    famo_update,
    famo_weights,
    grad_norm_update,
    uncertainty_update,
    uncertainty_weights,
)
from medvfm_jax.crosstask.partial_labels import (
    exclusion_cross_entropy,
    exclusion_dice,
    leaf_dice,
    marginal_cross_entropy,
    marginal_dice,
    masked_binary,
)
from medvfm_jax.crosstask.task_affinity import (
    UndefinedAffinity,
    best_groups,
    clusters,
    cosines,
    dissimilarity,
    gradient_diversity,
    lookahead_affinity,
)
from medvfm_jax.crosstask.task_relations import task_covariance, task_precision
from medvfm_jax.crosstask.task_vectors import Unified, of_task, unify

__all__ = [
    "Famo",
    "UndefinedAffinity",
    "Unified",
    "best_groups",
    "cagrad",
    "cluster_means",
    "clusters",
    "cosines",
    "dissimilarity",
    "dwa_weights",
    "exclusion_cross_entropy",
    "exclusion_dice",
    "famo_update",
    "famo_weights",
    "grad_norm_update",
    "gradient_diversity",
    "imtl_g",
    "joined_by_cosine",
    "leaf_dice",
    "lookahead_affinity",
    "marginal_cross_entropy",
    "marginal_dice",
    "masked_binary",
    "mgda",
    "nash_mtl",
    "number_of_clusters",
    "of_task",
    "parted",
    "pcgrad",
    "task_covariance",
    "task_precision",
    "uncertainty_update",
    "uncertainty_weights",
    "unify",
]
