"""SAM-Med2D: a gate for every channel and a convolution of half the resolution parallel to every MLP."""

from medvfm_jax.systems.places import DECODER_AND_PROMPT_ENCODER, MLP, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    adapter = {"kind": "channel_spatial", "at": MLP, "ratio": 0.25}
    if spec.qkv_layout == "head_major":
        adapter["normalise"] = True  # TinyViT's mlp holds its norm inside: its input is not normalised
    return {**tuned_decoder(spec, DECODER_AND_PROMPT_ENCODER), "adapter": adapter}


SYSTEM = System(
    description="parallel to the MLP of every block a gate for every channel, then convolutions to half the resolution "
    "and back, residual and norm; mask decoder and prompt encoder tuned (Cheng et al. 2023)",
    source="https://arxiv.org/abs/2308.16184",
    adapter=_parts,
    prompts="mixed",
    objective={"promptable": "sam", "semantic": "samed"},
    learning_rate=5e-4,
    differences="The norm of an adapter starts at zero, so that training starts from the model; the release starts it "
    "at one. Prompts are drawn once per image, without the release's eight rounds of corrections. The published "
    "weights are the model sam-med2d.",
)
