"""Published federated systems of foundation models, as presets over the same rounds."""

from medvfm_jax.federated.systems.catalog import System, describe, get, names

__all__ = ["System", "describe", "get", "names"]
