"""Published ways to adapt a vision foundation model, one record and one file each.

Examples:
    >>> system = systems.SYSTEMS["samed"]
    >>> adapter = systems.adapter("samed", model, **{"lora.rank": 8})
"""

from medvfm_jax.systems.catalog import SYSTEMS
from medvfm_jax.systems.configuration import adapter, adapter_config, configure, parse_assignments
from medvfm_jax.systems.features import for_features
from medvfm_jax.systems.record import System, prompt_free_on_request

__all__ = [
    "SYSTEMS",
    "System",
    "adapter",
    "adapter_config",
    "configure",
    "for_features",
    "parse_assignments",
    "prompt_free_on_request",
]
