"""LoRA alone, on the image encoder's queries and values."""

from medvfm_jax.systems.places import lora_on_qv
from medvfm_jax.systems.record import System

SYSTEM = System(
    description="LoRA, rank 4, unscaled, on q and v of the image encoder, nothing else (Hu et al. 2022)",
    source="https://arxiv.org/abs/2106.09685",
    adapter=lambda spec: {"lora": lora_on_qv(spec)},
)
