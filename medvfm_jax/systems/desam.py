"""DeSAM: SAM's decoder for prompt and quality, a U-Net over the frozen encoder's maps for the mask."""

from typing import Any

from medvfm_jax.systems.places import MASK_BRANCH, tuned
from medvfm_jax.systems.record import Parts, System, prompt_free_on_request
from medvfm_jax.types import ModelSpec

# What leads to the image tokens and to the IoU; hypernetworks and upscaling draw no mask here.
PROMPT_BRANCH = r"mask_decoder/(transformer|iou_token|mask_tokens|iou_prediction_head)/.*"


def _parts(spec: ModelSpec) -> Parts:
    return {"prim": tuned(PROMPT_BRANCH), "pdmm": {"kind": "whole", "at": MASK_BRANCH}}


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    return prompt_free_on_request(spec, prompt, classes) or {"kind": "desam"}


SYSTEM = System(
    description="image encoder and prompt encoder frozen, so that embeddings can be cached; SAM's decoder keeps prompt "
    "and quality (PRIM), and a U-Net with squeeze and excitation over three maps of the encoder draws the mask (PDMM) "
    "(Gao et al. 2024, DeSAM)",
    source="https://arxiv.org/abs/2306.00499",
    adapter=_parts,
    transform=_transform,
    objective={"promptable": "desam", "semantic": "samed"},
    learning_rate=1e-4,
    differences="On TinyViT the three maps are those of blocks whose grid is the embedding's. Trained with the prompts "
    "of this library; the grid of points that the release segments whole images with is not part of the system.",
)
