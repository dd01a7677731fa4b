"""FLAP-SAM's choice of what to train: low-rank updates of attention, and the last layers of the mask decoder."""

from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.systems.record import FederatedSystem
from medvfm_jax.systems import System
from medvfm_jax.systems.places import lora_on_qv
from medvfm_jax.systems.record import Parts
from medvfm_jax.types import ModelSpec

RANK = 32
DECODER_ATTENTION = r"mask_decoder/transformer/.*attn.*/(q|v)_proj"
LAST_LAYERS = r"mask_decoder/(output_upscaling_\d+|output_hypernetworks_mlps_\d+|mask_tokens)/.*"


def flap_sam_parts(spec: ModelSpec, rank: int = RANK) -> Parts:
    """Parts: LoRA on q and v of encoder and decoder; upscaling, hypernetworks and mask tokens tuned in full.

    Models without a mask decoder get the encoder's part.  Source: Asokan et al. 2024, "A federated learning-friendly
    approach for parameter-efficient fine-tuning of SAM in 3D segmentation", figure 1; the default rank and the names
    of what trains are those of its release (BioMedIA-MBZUAI/FLAP-SAM, train.py).
    """
    parts: Parts = {"encoder_lora": lora_on_qv(spec, rank)}
    if spec.task != "features":
        low_rank = {"kind": "lora", "rank": rank, "alpha": None, "at": DECODER_ATTENTION}
        parts = {"last_layers": {"kind": "tune", "at": LAST_LAYERS}, **parts, "decoder_lora": low_rank}
    return parts


SYSTEM = FederatedSystem(
    System(
        description="LoRA in the attention of encoder and decoder; of the rest only the decoder's upscaling, "
        "hypernetworks and mask tokens are tuned; all averaged (FLAP-SAM, Asokan et al. 2024)",
        source="https://arxiv.org/abs/2407.21739",
        adapter=flap_sam_parts,
        differences="One LoRA of rank 32 on queries and values, unscaled, the release's default rank; the published "
        "traffic is 66.1 times (LoRA alone) and 48.9 times (all) less than full tuning: here 68.5 and 46.8 on SAM "
        "ViT-B.",
    ),
    fedavg,
)
