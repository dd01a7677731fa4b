"""FLAP-SAM's choice of what to train: low-rank updates of attention, and the last layers of the mask decoder."""

from typing import Any

from medvfm_jax.adapters import presets
from medvfm_jax.types import ModelSpec

RANK = 32
DECODER_ATTENTION = r"mask_decoder/transformer/.*attn.*/(q|v)_proj"
LAST_LAYERS = r"mask_decoder/(output_upscaling_\d+|output_hypernetworks_mlps_\d+|mask_tokens)/.*"


def flap_sam_adapter(spec: ModelSpec, rank: int = RANK) -> dict[str, Any]:
    """Configuration: LoRA on q and v of encoder and decoder; upscaling, hypernetworks and mask tokens tuned in full.

    Models without a mask decoder get the encoder's part.  Source: Asokan et al. 2024, "A federated learning-friendly
    approach for parameter-efficient fine-tuning of SAM in 3D segmentation", figure 1; the default rank and the names
    of what trains are those of its release (BioMedIA-MBZUAI/FLAP-SAM, train.py).
    """
    encoder = presets.config("lora", spec, {"lora.rank": rank})["parts"]["lora"]
    parts: dict[str, Any] = {"encoder_lora": encoder}
    if spec.task != "features":
        low_rank = {"kind": "lora", "rank": rank, "alpha": None, "at": DECODER_ATTENTION}
        parts = {"last_layers": {"kind": "tune", "at": LAST_LAYERS}, **parts, "decoder_lora": low_rank}
    return {"kind": "chain", "preset": "flap_sam", "parts": parts}
