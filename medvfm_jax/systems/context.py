"""Pyramid pooling between image encoder and mask decoder."""

from medvfm_jax.systems.places import tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    return {**tuned_decoder(spec), "context": {"kind": "context", "block": "pyramid", "at": "image_encoder"}}


SYSTEM = System(
    description="pyramid pooling after the image encoder, zero at start; mask decoder tuned",
    source="https://arxiv.org/abs/1612.01105",
    adapter=_parts,
    learning_rate=5e-4,
    differences="PSPNet's pooling of a network of its own, here as a residual that starts at zero.",
)
