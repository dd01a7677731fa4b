"""SAMed_s: SAMed with low-rank updates in the mask decoder's transformer too, instead of tuning it."""

from medvfm_jax.systems.places import DECODER_QV, lora_on_qv, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec

OUTSIDE_TRANSFORMER = r"prompt_encoder/.*|mask_decoder/(?!transformer/).*"


def _parts(spec: ModelSpec) -> Parts:
    decoder = {"kind": "lora", "rank": 4, "alpha": None, "at": DECODER_QV}
    return {**tuned_decoder(spec, OUTSIDE_TRANSFORMER), "lora": lora_on_qv(spec), "decoder_lora": decoder}


SYSTEM = System(
    description="LoRA, rank 4, unscaled, on q and v of the image encoder and of every attention of the mask decoder; "
    "the rest of the decoder outside its transformer and the prompt encoder tuned (Zhang and Liu 2023, SAMed_s as "
    "released)",
    source="https://arxiv.org/abs/2304.13785",
    adapter=_parts,
    prompts="none",
    learning_rate=5e-4,
    differences="The tokens of the classes start from SAM's mask tokens, where the release draws them at random.",
)
