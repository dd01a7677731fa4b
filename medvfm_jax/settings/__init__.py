"""What every command can be asked for: frozen records that import nothing heavy, so that help is there at once."""

from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.audit import AuditConfig
from medvfm_jax.settings.bench import BenchConfig
from medvfm_jax.settings.compress import CompressConfig
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.settings.plan import CohortPlanConfig, PlanConfig, Training
from medvfm_jax.settings.records import BadConfig, from_json, to_json

__all__ = [
    "AdaptConfig",
    "AuditConfig",
    "BadConfig",
    "BenchConfig",
    "CohortPlanConfig",
    "CompressConfig",
    "EvaluateConfig",
    "FederateConfig",
    "FewShotConfig",
    "PlanConfig",
    "Training",
    "from_json",
    "to_json",
]
