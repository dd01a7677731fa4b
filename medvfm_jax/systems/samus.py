"""SAMUS: small images, a convolutional branch that the global blocks attend to, adapters; the rest of SAM frozen."""

from typing import Any

from medvfm_jax.systems.places import SAMUS, tuned
from medvfm_jax.systems.record import Parts, System, prompt_free_on_request
from medvfm_jax.types import ModelSpec

POSITIONS = r"image_encoder/blocks_\d+/attn/rel_pos_[hw]"


def _parts(spec: ModelSpec) -> Parts:
    return {"new": {"kind": "whole", "at": SAMUS}, "positions": tuned(POSITIONS)}


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    return {"kind": "samus", "of": prompt_free_on_request(spec, prompt, classes)}


SYSTEM = System(
    description="on images of 256 pixels with overlapping patches: a convolutional branch, cross-branch attention and "
    "bottlenecks in the global blocks, adapters of features and positions; prompt encoder and mask decoder frozen (Lin "
    "et al. 2023, SAMUS)",
    source="https://arxiv.org/abs/2309.06824",
    adapter=_parts,
    transform=_transform,
    prompts="point",
    objective={"promptable": "samed", "semantic": "samed"},
    learning_rate=5e-4,
    differences="For SAM with a ViT. Relative positions of all blocks are tuned, in the release of global ones. "
    "The loss is 0.8 Dice with squared denominators and 0.2 cross-entropy at the resolution of the logits.",
)
