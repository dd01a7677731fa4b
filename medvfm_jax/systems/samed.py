"""SAMed: LoRA on the image encoder's queries and values, prompt-free, with one output per class."""

from medvfm_jax.systems.places import DECODER_AND_PROMPT_ENCODER, lora_on_qv, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    return {**tuned_decoder(spec, DECODER_AND_PROMPT_ENCODER), "lora": lora_on_qv(spec)}


SYSTEM = System(
    description="LoRA, rank 4, unscaled, on q and v of the image encoder; mask decoder and prompt encoder tuned "
    "(Zhang and Liu 2023, as released)",
    source="https://arxiv.org/abs/2304.13785",
    adapter=_parts,
    prompts="none",
    learning_rate=5e-4,
    differences="The tokens of the classes start from SAM's mask tokens, where the release draws them at random.",
)
