"""Theory beside measurement: what can be computed of a model and data before anything is trained."""

from medvfm_jax.theory.attention_distance import attention_distance, grid_side, uniform_distance
from medvfm_jax.theory.client_drift import ClientDrift, NoDrift, client_drift
from medvfm_jax.theory.curvature import (
    NoCurvature,
    Spectrum,
    estimate_spectrum,
    gauss_newton_product,
    hessian_product,
    lanczos,
)
from medvfm_jax.theory.domain_bound import DomainBound, LabelledDomain, NoTerms, domain_bound, domain_bounds
from medvfm_jax.theory.empirical_predictor import leep, n_leep
from medvfm_jax.theory.evidence import Evidence, log_evidence, logme
from medvfm_jax.theory.frechet import squared_frechet
from medvfm_jax.theory.h_score import h_score
from medvfm_jax.theory.interpolation import Barrier, NoLine, barrier_between
from medvfm_jax.theory.landscape import Landscape, NoLandscape, filter_directions, landscape
from medvfm_jax.theory.maximum_mean_discrepancy import gaussian_kernel, squared_mmd
from medvfm_jax.theory.pac_bayes import (
    NoBound,
    gaussian_divergence,
    kl_bernoulli,
    kl_inverse,
    pac_bayes_bound,
    sampled_error,
)
from medvfm_jax.theory.permutation import Tested, permutation_test
from medvfm_jax.theory.placement import Place, grouped, within_budget
from medvfm_jax.theory.predictors import PREDICTORS, Predictor
from medvfm_jax.theory.proxy_distance import proxy_a_distance
from medvfm_jax.theory.rank_agreement import RankAgreement, rank_agreement
from medvfm_jax.theory.receptive_field import Extent, extent, squared_gradient
from medvfm_jax.theory.runs.ablate import AblationResult, CellResult, analyze_ablate
from medvfm_jax.theory.runs.attention_distance import (
    AttentionDistance,
    AttentionDistanceResult,
    AttentionLayer,
    analyze_attention_distance,
)
from medvfm_jax.theory.runs.barrier import BarrierResult, analyze_barrier
from medvfm_jax.theory.runs.bound import Bounded, BoundResult, analyze_bound
from medvfm_jax.theory.runs.conflict import ConflictResult, SiteGradient, analyze_conflict
from medvfm_jax.theory.runs.curvature import CurvatureResult, analyze_curvature
from medvfm_jax.theory.runs.divergence import Distance, DivergenceResult, analyze_divergence
from medvfm_jax.theory.runs.drift import DriftPoint, DriftResult, analyze_drift
from medvfm_jax.theory.runs.kernel import AdapterKernel, KernelResult, analyze_kernel
from medvfm_jax.theory.runs.landscape import LandscapeResult, analyze_landscape
from medvfm_jax.theory.runs.placement import PlacementResult, analyze_placement
from medvfm_jax.theory.runs.rates import CodecRate, PrivacyRate, RatesResult, analyze_rates
from medvfm_jax.theory.runs.receptive_field import (
    ReceptiveField,
    ReceptiveFieldResult,
    analyze_receptive_field,
    receptive_field,
)
from medvfm_jax.theory.runs.scaling import ScalingResult, analyze_scaling
from medvfm_jax.theory.runs.similarity import SimilarityResult, analyze_similarity
from medvfm_jax.theory.runs.transferability import (
    Estimate,
    Transferability,
    TransferabilityResult,
    analyze_transferability,
)
from medvfm_jax.theory.scaling_law import BadCurve, ScalingLaw, fit_scaling_law
from medvfm_jax.theory.similarity import debiased_cka
from medvfm_jax.theory.sliced_wasserstein import squared_sliced_wasserstein
from medvfm_jax.theory.spectrum import captured_energy, effective_rank, energy_rank, stable_rank
from medvfm_jax.theory.tangent_kernel import KernelSummary, NoKernel, linearised_losses, summarise_kernel

__all__ = [
    "PREDICTORS",
    "AblationResult",
    "AdapterKernel",
    "AttentionDistance",
    "AttentionDistanceResult",
    "AttentionLayer",
    "BadCurve",
    "Barrier",
    "BarrierResult",
    "BoundResult",
    "Bounded",
    "CellResult",
    "ClientDrift",
    "CodecRate",
    "ConflictResult",
    "CurvatureResult",
    "Distance",
    "DivergenceResult",
    "DomainBound",
    "DriftPoint",
    "DriftResult",
    "Estimate",
    "Evidence",
    "Extent",
    "KernelResult",
    "KernelSummary",
    "LabelledDomain",
    "Landscape",
    "LandscapeResult",
    "NoBound",
    "NoCurvature",
    "NoDrift",
    "NoKernel",
    "NoLandscape",
    "NoLine",
    "NoTerms",
    "Place",
    "PlacementResult",
    "Predictor",
    "PrivacyRate",
    "RankAgreement",
    "RatesResult",
    "ReceptiveField",
    "ReceptiveFieldResult",
    "ScalingLaw",
    "ScalingResult",
    "SimilarityResult",
    "SiteGradient",
    "Spectrum",
    "Tested",
    "Transferability",
    "TransferabilityResult",
    "analyze_ablate",
    "analyze_attention_distance",
    "analyze_barrier",
    "analyze_bound",
    "analyze_conflict",
    "analyze_curvature",
    "analyze_divergence",
    "analyze_drift",
    "analyze_kernel",
    "analyze_landscape",
    "analyze_placement",
    "analyze_rates",
    "analyze_receptive_field",
    "analyze_scaling",
    "analyze_similarity",
    "analyze_transferability",
    "attention_distance",
    "barrier_between",
    "captured_energy",
    "client_drift",
    "debiased_cka",
    "domain_bound",
    "domain_bounds",
    "effective_rank",
    "energy_rank",
    "estimate_spectrum",
    "extent",
    "filter_directions",
    "fit_scaling_law",
    "gauss_newton_product",
    "gaussian_divergence",
    "gaussian_kernel",
    "grid_side",
    "grouped",
    "h_score",
    "hessian_product",
    "kl_bernoulli",
    "kl_inverse",
    "lanczos",
    "landscape",
    "leep",
    "linearised_losses",
    "log_evidence",
    "logme",
    "n_leep",
    "pac_bayes_bound",
    "permutation_test",
    "proxy_a_distance",
    "rank_agreement",
    "receptive_field",
    "sampled_error",
    "squared_frechet",
    "squared_gradient",
    "squared_mmd",
    "squared_sliced_wasserstein",
    "stable_rank",
    "summarise_kernel",
    "uniform_distance",
    "within_budget",
]
