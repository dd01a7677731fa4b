"""LayerNorm tuning: scales and shifts of all layer norms."""

from medvfm_jax.systems.places import NORM, tuned
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="scale and bias of every layer norm tuned, in encoder and decoder, nothing else (Basu et al. 2024)",
    source="https://arxiv.org/abs/2305.02239",
    adapter=lambda spec: {"norms": tuned(NORM)},
    differences="Published for few-shot classification. Batch norms (TinyViT) stay frozen.",
)
