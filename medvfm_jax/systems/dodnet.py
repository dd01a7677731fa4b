"""DoDNet: small convolutions in the decoder whose weights come from the picture and its task."""

from medvfm_jax.systems.places import UPSCALED, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    return {**tuned_decoder(spec), "head": {"kind": "dynamic_head", "at": UPSCALED}}


SYSTEM = System(
    description="two 1 x 1 convolutions in the mask decoder, whose weights are made from the picture and its task; "
    "mask decoder tuned (after Zhang et al. 2021, DoDNet)",
    source="https://arxiv.org/abs/2011.10217",
    adapter=_parts,
    learning_rate=5e-4,
    differences="Published as the head of a 3D U-Net; here a residual of the decoder's map before the masks' tokens "
    "meet it, which starts at zero. Features are pooled from that map instead of the encoder's.",
)
