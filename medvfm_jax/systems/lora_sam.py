"""LoRASAM: low-rank updates in image encoder and mask decoder, and next to nothing beside them."""

from medvfm_jax.systems.places import DECODER_QV, lora_on_qv, tuned
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec

OUTPUTS = r"mask_decoder/(mask_tokens/embedding|output_hypernetworks_mlps_\d+/layers_2/(kernel|bias))"


def _parts(spec: ModelSpec) -> Parts:
    decoder = {"kind": "lora", "rank": 4, "alpha": None, "at": DECODER_QV}
    return {"outputs": tuned(OUTPUTS), "lora": lora_on_qv(spec), "decoder_lora": decoder}


SYSTEM = System(
    description="LoRA, rank 4, unscaled, on q and v of the image encoder and of every attention of the mask decoder; "
    "of the rest only mask tokens and the last layers of the hypernetworks tuned: 99.8 % of SAM ViT-B stay frozen",
    source="https://arxiv.org/abs/2502.14584",
    adapter=_parts,
    prompts="none",
    differences="Interpretation: the source, a survey, names LoRASAM and the share that trains, below 1 %, and "
    "no more; the paper behind the name is not known to us. SAMed's low-rank updates without its tuned decoder.",
)
