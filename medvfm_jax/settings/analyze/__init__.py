"""What `analyze` can be asked for: frozen records, the same for Python and the command line."""

from medvfm_jax.settings.analyze.divergence import DivergenceConfig
from medvfm_jax.settings.analyze.placement import PlacementConfig
from medvfm_jax.settings.analyze.receptive_field import ReceptiveFieldConfig
from medvfm_jax.settings.analyze.similarity import SimilarityConfig
from medvfm_jax.settings.analyze.transferability import TransferabilityConfig

__all__ = [
    "DivergenceConfig",
    "PlacementConfig",
    "ReceptiveFieldConfig",
    "SimilarityConfig",
    "TransferabilityConfig",
]
