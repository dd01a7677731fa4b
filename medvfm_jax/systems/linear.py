"""Linear probing: the last linear layer before the masks."""

from medvfm_jax.systems.places import LAST_LINEAR, tuned
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="only the last linear layer before the masks tuned (linear probing)",
    source="https://arxiv.org/abs/1610.01644",
    adapter=lambda spec: {"head": tuned(LAST_LINEAR)},
)
