"""Theory beside measurement: what can be computed of a model and data before anything is trained."""

from medvfm_jax.theory.placement import Place, grouped, within_budget
from medvfm_jax.theory.runs.conflict import ConflictResult, SiteGradient, analyze_conflict
from medvfm_jax.theory.runs.placement import PlacementResult, analyze_placement
from medvfm_jax.theory.runs.similarity import SimilarityResult, analyze_similarity
from medvfm_jax.theory.similarity import debiased_cka
from medvfm_jax.theory.spectrum import captured_energy, effective_rank, energy_rank, stable_rank

__all__ = [
    "ConflictResult",
    "Place",
    "PlacementResult",
    "SimilarityResult",
    "SiteGradient",
    "analyze_conflict",
    "analyze_placement",
    "analyze_similarity",
    "captured_energy",
    "debiased_cka",
    "effective_rank",
    "energy_rank",
    "grouped",
    "stable_rank",
    "within_budget",
]
