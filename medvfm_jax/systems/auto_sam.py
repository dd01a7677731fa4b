"""AutoSAM: a network predicts SAM's dense prompt from the image; SAM stays frozen."""

from typing import Any

from medvfm_jax.systems.places import PREDICTOR
from medvfm_jax.systems.record import System, prompt_free_on_request
from medvfm_jax.types import ModelSpec


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any] | None:
    free = prompt_free_on_request(spec, prompt, classes)
    return free and {"kind": "auto_sam", "classes": classes}


SYSTEM = System(
    description="SAM frozen; HarDNet-85 and a small decoder, trained from scratch, predict its dense prompt from the "
    "image (Shaharabany et al. 2023, AutoSAM)",
    source="https://arxiv.org/abs/2306.06370",
    adapter=lambda spec: {"predictor": {"kind": "whole", "at": PREDICTOR}},
    transform=_transform,
    prompts="none",
    objective={"promptable": "medsam", "semantic": "medsam"},
    learning_rate=3e-4,
    differences="Interpretation: HarDNet starts at random, in the release from ImageNet, and normalises over "
    "channels instead of with batch statistics; its small decoder is our interpretation. Several classes get one "
    "prompt each, where the publication has one. Masks are the sigmoid of logits, in the release logits scaled to "
    "0 to 1.",
)
