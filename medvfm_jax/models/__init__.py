"""Backbones and decoders as ``Model`` records of pure functions; ``build(name)`` makes one."""

from medvfm_jax.models.catalog import BadModelOption, UnknownModel, build, names
from medvfm_jax.models.model import Model
from medvfm_jax.models.semantic import to_semantic

__all__ = ["BadModelOption", "Model", "UnknownModel", "build", "names", "to_semantic"]
