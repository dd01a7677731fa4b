"""Theory beside measurement: what can be computed of a model and data before anything is trained."""

from medvfm_jax.theory.client_drift import ClientDrift, NoDrift, client_drift
from medvfm_jax.theory.curvature import (
    NoCurvature,
    Spectrum,
    estimate_spectrum,
    gauss_newton_product,
    hessian_product,
    lanczos,
)
from medvfm_jax.theory.placement import Place, grouped, within_budget
from medvfm_jax.theory.predictors import PREDICTORS, Predictor
from medvfm_jax.theory.rank_agreement import RankAgreement, rank_agreement
from medvfm_jax.theory.runs.ablate import AblationResult, CellResult, analyze_ablate
from medvfm_jax.theory.runs.conflict import ConflictResult, SiteGradient, analyze_conflict
from medvfm_jax.theory.runs.curvature import CurvatureResult, analyze_curvature
from medvfm_jax.theory.runs.drift import DriftPoint, DriftResult, analyze_drift
from medvfm_jax.theory.runs.kernel import AdapterKernel, KernelResult, analyze_kernel
from medvfm_jax.theory.runs.placement import PlacementResult, analyze_placement
from medvfm_jax.theory.runs.scaling import ScalingResult, analyze_scaling
from medvfm_jax.theory.runs.similarity import SimilarityResult, analyze_similarity
from medvfm_jax.theory.scaling_law import BadCurve, ScalingLaw, fit_scaling_law
from medvfm_jax.theory.similarity import debiased_cka
from medvfm_jax.theory.spectrum import captured_energy, effective_rank, energy_rank, stable_rank
from medvfm_jax.theory.tangent_kernel import KernelSummary, NoKernel, linearised_losses, summarise_kernel

__all__ = [
    "PREDICTORS",
    "AblationResult",
    "AdapterKernel",
    "BadCurve",
    "CellResult",
    "ClientDrift",
    "ConflictResult",
    "CurvatureResult",
    "DriftPoint",
    "DriftResult",
    "KernelResult",
    "KernelSummary",
    "NoCurvature",
    "NoDrift",
    "NoKernel",
    "Place",
    "PlacementResult",
    "Predictor",
    "RankAgreement",
    "ScalingLaw",
    "ScalingResult",
    "SimilarityResult",
    "SiteGradient",
    "Spectrum",
    "analyze_ablate",
    "analyze_conflict",
    "analyze_curvature",
    "analyze_drift",
    "analyze_kernel",
    "analyze_placement",
    "analyze_scaling",
    "analyze_similarity",
    "captured_energy",
    "client_drift",
    "debiased_cka",
    "effective_rank",
    "energy_rank",
    "estimate_spectrum",
    "fit_scaling_law",
    "gauss_newton_product",
    "grouped",
    "hessian_product",
    "lanczos",
    "linearised_losses",
    "rank_agreement",
    "stable_rank",
    "summarise_kernel",
    "within_budget",
]
