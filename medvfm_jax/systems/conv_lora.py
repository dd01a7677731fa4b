"""Conv-LoRA: convolutions at several scales inside the bottleneck of LoRA."""

from medvfm_jax.systems.places import on_qv, tuned_decoder
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec


def _parts(spec: ModelSpec) -> Parts:
    low_rank = {"kind": "conv_lora", "rank": 3, "alpha": None, "experts": 8, "top_k": 1, **on_qv(spec)}
    return {**tuned_decoder(spec), "lora": low_rank}


SYSTEM = System(
    description="LoRA of rank 3 on q and v of the image encoder with eight convolutions in its bottleneck, each at "
    "its own scale, of which a gate chooses one for each map; mask decoder tuned (Zhong et al. 2024)",
    source="https://arxiv.org/abs/2401.17868",
    adapter=_parts,
    learning_rate=5e-4,
    differences="The gate learns from the masks (straight through) and not from a loss that balances the experts over "
    "a batch, as in the release. Not for a plain ViT, whose tokens are no map.",
)
