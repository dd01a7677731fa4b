"""H-SAM: LoRA on the image encoder and a decoder in two stages, the first guiding the second."""

from typing import Any

from medvfm_jax.systems.places import DECODER_AND_PROMPT_ENCODER, SECOND_DECODER, lora_on_qv, tuned_decoder
from medvfm_jax.systems.record import Parts, System, prompt_free_on_request
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    second = {"kind": "whole", "at": SECOND_DECODER}
    first = tuned_decoder(spec, DECODER_AND_PROMPT_ENCODER)
    return {**first, "second_decoder": second, "lora": lora_on_qv(spec, 5)}


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any] | None:
    free = prompt_free_on_request(spec, prompt, classes)
    return free and {"kind": "h_sam", "of": free}


SYSTEM = System(
    description="LoRA, rank 5, unscaled, on q and v of the image encoder; mask decoder and prompt encoder tuned, and a "
    "second decoder guided by their masks, with logits as fine as the image (Cheng et al. 2024, H-SAM)",
    source="https://arxiv.org/abs/2403.18271",
    adapter=_parts,
    transform=_transform,
    prompts="none",
    objective={"promptable": "medsam", "semantic": "h_sam"},
    learning_rate=5e-4,
    differences="The first stage is SAM's decoder unchanged (the release lets tokens attend to the image first). The "
    "weight of the second stage's loss is the mean of the published schedule. Without the class-balanced noise of "
    "training, which the release leaves out for 512 pixels, and without dropout. The gate of the embedding is a "
    "sigmoid: in the release a softmax over one channel, which is 1. Shapes follow from grid and classes.",
)
