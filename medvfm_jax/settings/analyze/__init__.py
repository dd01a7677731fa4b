"""What `analyze` can be asked for: frozen records, the same for Python and the command line."""

from medvfm_jax.settings.analyze.ablate import AblateConfig
from medvfm_jax.settings.analyze.attention_distance import AttentionDistanceConfig
from medvfm_jax.settings.analyze.barrier import BarrierConfig
from medvfm_jax.settings.analyze.bound import BoundConfig
from medvfm_jax.settings.analyze.conflict import ConflictConfig
from medvfm_jax.settings.analyze.curvature import CurvatureConfig
from medvfm_jax.settings.analyze.divergence import DivergenceConfig
from medvfm_jax.settings.analyze.drift import DriftConfig
from medvfm_jax.settings.analyze.kernel import KernelConfig
from medvfm_jax.settings.analyze.landscape import LandscapeConfig
from medvfm_jax.settings.analyze.placement import PlacementConfig
from medvfm_jax.settings.analyze.rates import RatesConfig
from medvfm_jax.settings.analyze.receptive_field import ReceptiveFieldConfig
from medvfm_jax.settings.analyze.scaling import ScalingConfig
from medvfm_jax.settings.analyze.similarity import SimilarityConfig
from medvfm_jax.settings.analyze.transferability import TransferabilityConfig

__all__ = [
    "AblateConfig",
    "AttentionDistanceConfig",
    "BarrierConfig",
    "BoundConfig",
    "ConflictConfig",
    "CurvatureConfig",
    "DivergenceConfig",
    "DriftConfig",
    "KernelConfig",
    "LandscapeConfig",
    "PlacementConfig",
    "RatesConfig",
    "ReceptiveFieldConfig",
    "ScalingConfig",
    "SimilarityConfig",
    "TransferabilityConfig",
]
