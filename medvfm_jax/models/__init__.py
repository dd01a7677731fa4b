"""Backbones and decoders as ``Model`` records of pure functions; ``build(name)`` makes one."""

from medvfm_jax.models.catalog import MODELS, build
from medvfm_jax.models.errors import BadModelOption, UnknownModel
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.prompt_free import to_semantic

__all__ = ["MODELS", "BadModelOption", "Model", "UnknownModel", "build", "to_semantic"]
