"""What `analyze` can be asked for: frozen records, the same for Python and the command line."""

from medvfm_jax.settings.analyze.conflict import ConflictConfig
from medvfm_jax.settings.analyze.placement import PlacementConfig
from medvfm_jax.settings.analyze.similarity import SimilarityConfig

__all__ = ["ConflictConfig", "PlacementConfig", "SimilarityConfig"]
