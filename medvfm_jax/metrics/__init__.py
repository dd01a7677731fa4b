"""Metrics on label maps with spacing: scores of a case, summary with intervals, paired comparison of runs."""

from medvfm_jax.metrics import profiles
from medvfm_jax.metrics.calibration import Reliability, brier, expected_calibration_error, reliability
from medvfm_jax.metrics.cases import score_case, score_masks
from medvfm_jax.metrics.compare import NothingInCommon, compare
from medvfm_jax.metrics.instances import aggregated_jaccard, connected_components, instance_scores
from medvfm_jax.metrics.overlap import MaskShapeMismatch
from medvfm_jax.metrics.profiles import Profile, UnknownProfile
from medvfm_jax.metrics.summary import IncompleteRow, summarise
from medvfm_jax.metrics.surface import BadSpacing, surface_distances

__all__ = [
    "BadSpacing",
    "IncompleteRow",
    "MaskShapeMismatch",
    "NothingInCommon",
    "Profile",
    "Reliability",
    "UnknownProfile",
    "aggregated_jaccard",
    "brier",
    "compare",
    "connected_components",
    "expected_calibration_error",
    "instance_scores",
    "profiles",
    "reliability",
    "score_case",
    "score_masks",
    "summarise",
    "surface_distances",
]
