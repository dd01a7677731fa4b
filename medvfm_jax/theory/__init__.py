"""Theory beside measurement: what can be computed of a model and data before anything is trained."""

from medvfm_jax.theory.evidence import Evidence, log_evidence, logme
from medvfm_jax.theory.frechet import squared_frechet
from medvfm_jax.theory.h_score import h_score
from medvfm_jax.theory.maximum_mean_discrepancy import gaussian_kernel, squared_mmd
from medvfm_jax.theory.permutation import Tested, permutation_test
from medvfm_jax.theory.placement import Place, grouped, within_budget
from medvfm_jax.theory.proxy_distance import proxy_a_distance
from medvfm_jax.theory.receptive_field import Extent, extent, squared_gradient
from medvfm_jax.theory.runs.divergence import Distance, DivergenceResult, analyze_divergence
from medvfm_jax.theory.runs.placement import PlacementResult, analyze_placement
from medvfm_jax.theory.runs.receptive_field import (
    ReceptiveField,
    ReceptiveFieldResult,
    analyze_receptive_field,
)
from medvfm_jax.theory.runs.similarity import SimilarityResult, analyze_similarity
from medvfm_jax.theory.runs.transferability import (
    Estimate,
    Transferability,
    TransferabilityResult,
    analyze_transferability,
)
from medvfm_jax.theory.similarity import debiased_cka
from medvfm_jax.theory.sliced_wasserstein import squared_sliced_wasserstein
from medvfm_jax.theory.spectrum import captured_energy, effective_rank, energy_rank, stable_rank

__all__ = [
    "Distance",
    "DivergenceResult",
    "Estimate",
    "Evidence",
    "Extent",
    "Place",
    "PlacementResult",
    "ReceptiveField",
    "ReceptiveFieldResult",
    "SimilarityResult",
    "Tested",
    "Transferability",
    "TransferabilityResult",
    "analyze_divergence",
    "analyze_placement",
    "analyze_receptive_field",
    "analyze_similarity",
    "analyze_transferability",
    "captured_energy",
    "debiased_cka",
    "effective_rank",
    "energy_rank",
    "extent",
    "gaussian_kernel",
    "grouped",
    "h_score",
    "log_evidence",
    "logme",
    "permutation_test",
    "proxy_a_distance",
    "squared_frechet",
    "squared_gradient",
    "squared_mmd",
    "squared_sliced_wasserstein",
    "stable_rank",
    "within_budget",
]
