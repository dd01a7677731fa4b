"""Fine-tuning of every parameter."""

from medvfm_jax.systems.places import tuned
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="every parameter tuned; buffers (batch-norm statistics, SAM's random frequencies) stay",
    source="https://arxiv.org/abs/2304.12306",
    adapter=lambda spec: {"full": tuned(r".*")},
    learning_rate=1e-4,
    differences="MedSAM keeps the prompt encoder frozen.",
)
