"""Distillation recipes: decoupled embedding distillation, and students cut out of their teachers."""

from medvfm_jax.distill.decoupled import (
    DecoupledBatch,
    EmbeddingMismatch,
    make_decoupled_loss,
    valid_positions,
    write_embeddings,
)
from medvfm_jax.distill.inherit import Inherited, NothingInherited, inherit

__all__ = [
    "DecoupledBatch",
    "EmbeddingMismatch",
    "Inherited",
    "NothingInherited",
    "inherit",
    "make_decoupled_loss",
    "valid_positions",
    "write_embeddings",
]
