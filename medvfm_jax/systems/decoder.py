"""Fine-tuning of the mask decoder alone."""

from medvfm_jax.systems.places import DECODER, tuned
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="the mask decoder tuned, the image encoder frozen, so that embeddings can be cached",
    source="https://arxiv.org/abs/2304.12306",
    adapter=lambda spec: {"decoder": tuned(DECODER)},
    learning_rate=3e-4,
    differences="MedSAM tunes the image encoder too.",
)
