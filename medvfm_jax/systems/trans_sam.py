"""Trans-SAM: bottlenecks that share a projection of the patches, and bottlenecks with convolutions of three sizes."""

from medvfm_jax.systems.places import ATTENTION, MLP, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    prior = {"kind": "shared_bottleneck", "at": ATTENTION, "ratio": 1 / 32}
    scales = {"kind": "multiscale_bottleneck", "at": MLP, "ratio": 1 / 8, "dropout": 0.1}
    return {**tuned_decoder(spec), "ipf": prior, "mdt": scales}


SYSTEM = System(
    description="after attention bottlenecks of 1/32 of the width that share a projection of the patches, with triplet "
    "attention (IPF); parallel to the MLP bottlenecks of 1/8 with convolutions of three sizes and spatial attention "
    "(MDT); mask decoder tuned (Wu et al. 2025, Trans-SAM)",
    source="https://doi.org/10.1016/j.knosys.2024.112909",
    adapter=_parts,
    learning_rate=5e-4,
    differences="Interpretation: made from a description, without the release. Where it normalises with batch "
    "statistics, these use those of the image; triplet attention has none. On TinyViT the patches are resized to "
    "every stage and bottlenecks of each width share a projection of their own. That the mask decoder is tuned is "
    "our interpretation.",
)
