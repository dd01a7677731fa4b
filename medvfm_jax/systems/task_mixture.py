"""A mixture of LoRA of several tasks: shared experts behind a gate, one expert of each task."""

from medvfm_jax.systems.places import QKV
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="two low-rank experts of rank 4 on q, k and v of the image encoder that all tasks share, mixed for "
    "every token, and one of each task; a loss keeps the shared ones in use (after Dou et al. 2024, LoRAMoE)",
    source="https://arxiv.org/abs/2312.09979",
    adapter=lambda spec: {"experts": {"kind": "task_lora_experts", "rank": 4, "alpha": None, "at": QKV}},
    differences="Published for language models, with groups of experts; here the private expert is chosen by the "
    "site's task, and the balance is that of Fedus et al. 2022 within one image.",
)
