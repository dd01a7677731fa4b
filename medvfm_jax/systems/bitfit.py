"""BitFit: biases only."""

from medvfm_jax.systems.places import tuned
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="every bias tuned (Ben Zaken et al. 2022)",
    source="https://arxiv.org/abs/2106.10199",
    adapter=lambda spec: {"bias": tuned(r"(.*/)?bias")},
    differences="Published on text models.",
)
