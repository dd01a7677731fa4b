"""A mixture of LoRA: two low-rank experts and a gate for every token."""

from medvfm_jax.systems.places import QKV
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="two low-rank experts of rank 4 on q, k and v of the image encoder, mixed for every token by a gate"
    " (after Wu et al. 2024, MoLE)",
    source="https://arxiv.org/abs/2404.13628",
    adapter=lambda spec: {"experts": {"kind": "lora_experts", "rank": 4, "alpha": None, "at": QKV}},
    differences="Published to compose trained LoRAs by a gate of their outputs; here both are trained together with"
    " it.",
)
